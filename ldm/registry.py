"""Registries of components: names in configurations and on the command line -> classes and functions.

A built-in component is one file and one line here; it is imported when it is first used. Third-party components
register through the entry-point group `ldm.plugins`: each entry point names a module whose import calls `register`:

    from ldm.registry import SAMPLERS

    @SAMPLERS.register("my-sampler")
    def my_sampler(denoiser, x, grid, noise): ...
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

from ldm.errors import UserError

C = TypeVar("C")

PLUGINS = "ldm.plugins"


@cache
def load_plugins() -> None:
    """Import the modules of all installed plugins, once.

    Raises:
        UserError: if a plugin cannot be imported.
    """
    for plugin in sorted(entry_points(group=PLUGINS), key=lambda each: each.name):
        try:
            plugin.load()
        except Exception as error:
            raise UserError(f"plugin {plugin.name} ({plugin.value}) cannot be imported: {error}") from error


class Registry(Mapping[str, Any]):
    """Components of one kind by name, in the order of registration."""

    def __init__(self, kind: str, components: Mapping[str, str] | None = None) -> None:
        """Take `kind`, the name of the components in errors, and `components`, names -> `module:attribute`."""
        self.kind = kind
        self._components: dict[str, Any] = dict(components or {})

    def register(self, name: str, component: C | None = None) -> Callable[[C], C]:
        """Add a component, also as a decorator.

        Raises:
            ValueError: if the name is taken.
        """

        def add(component: C) -> C:
            if name in self._components:
                raise ValueError(f"{self.kind} {name!r} is already registered")
            self._components[name] = component
            return component

        if component is not None:
            add(component)
        return add

    def __getitem__(self, name: str) -> Any:
        """Return the component of a name, imported if necessary.

        Raises:
            UserError: if there is none; names the nearest one.
        """
        load_plugins()
        if name not in self._components:
            near = difflib.get_close_matches(str(name), self._components, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(self._components)}"
            raise UserError(f"no {self.kind} {name!r}: {hint}")
        component = self._components[name]
        if isinstance(component, str):
            module, _, attribute = component.partition(":")
            component = self._components[name] = getattr(import_module(module), attribute)
        return component

    def __contains__(self, name: object) -> bool:
        load_plugins()
        return name in self._components

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(tuple(self._components))

    def __len__(self) -> int:
        load_plugins()
        return len(self._components)


SPATIAL = Registry(  # conditionings of the section `spatial`, by its kind
    "spatial conditioning",
    {
        "segmentation_map": "ldm.conditioning.segmentation_map:SegmentationMap",
        "inpainting": "ldm.conditioning.inpainting:Inpainting",
        "low_resolution": "ldm.conditioning.low_resolution:LowResolution",
        "image_edit": "ldm.conditioning.image_edit:ImageEdit",
    },
)
CONDITIONINGS = Registry(  # the first one resolves a request first
    "conditioning",
    {
        "guidance": "ldm.conditioning.guidance:GuidanceEmbedding",
        "text": "ldm.conditioning.text.conditioning:TextConditioning",
        "classes": "ldm.conditioning.classes:ClassTokens",
        "image": "ldm.conditioning.image.conditioning:ImageEmbedding",
        "class_table": "ldm.conditioning.classes:ClassTable",
        "unconditional": "ldm.conditioning.unconditional:Unconditional",
    },
)
TEXT_ENCODERS = Registry(
    "text encoder",
    {
        "bert": "ldm.conditioning.text.bert:BertTextEncoder",
        "ldm_bert": "ldm.conditioning.text.ldm_bert:LDMBertTextEncoder",
        "clip": "ldm.conditioning.text.clip:CLIPTextEncoder",
        "open_clip": "ldm.conditioning.text.open_clip:OpenCLIPTextEncoder",
        "t5": "ldm.conditioning.text.t5:T5TextEncoder",
    },
)
IMAGE_ENCODERS = Registry(
    "image encoder",
    {
        "own": "ldm.conditioning.image.encoders:OwnImageEncoder",
        "clip": "ldm.conditioning.image.encoders:CLIPImageEncoder",
    },
)
DENOISERS = Registry("denoiser", {"unet": "ldm.models.unet.unet:UNet"})  # by the key of their section
BOTTLENECKS = Registry(
    "autoencoder bottleneck",
    {
        "kl": "ldm.models.autoencoder.kl:KLBottleneck",
        "vq": "ldm.models.autoencoder.vq:VQBottleneck",
        "identity": "ldm.models.autoencoder.identity:IdentityBottleneck",
    },
)
SCHEDULES = Registry(
    "schedule",
    {
        "linear": "ldm.diffusion.schedule:Linear",
        "scaled_linear": "ldm.diffusion.schedule:ScaledLinear",
        "cosine": "ldm.diffusion.schedule:Cosine",
        "sigmoid": "ldm.diffusion.schedule:Sigmoid",
        "flow": "ldm.diffusion.flow:RectifiedFlow",
    },
)
PREDICTIONS = Registry(
    "prediction",
    {
        "eps": "ldm.diffusion.prediction:Eps",
        "x0": "ldm.diffusion.prediction:X0",
        "v": "ldm.diffusion.prediction:V",
        "flow": "ldm.diffusion.prediction:Flow",
    },
)
WEIGHTINGS = Registry(
    "loss weighting",
    {
        "uniform": "ldm.diffusion.weighting:Weighting",
        "min_snr": "ldm.diffusion.weighting:MinSNR",
        "soft_min_snr": "ldm.diffusion.weighting:SoftMinSNR",
        "p2": "ldm.diffusion.weighting:P2",
        "vlb": "ldm.diffusion.weighting:VLB",
    },
)
SAMPLERS = Registry(
    "sampler",
    {
        "ddim": "ldm.diffusion.samplers.first_order:ddim",
        "ddpm": "ldm.diffusion.samplers.first_order:ddpm",
        "ddpm-large": "ldm.diffusion.samplers.first_order:ddpm_large",
        "euler": "ldm.diffusion.samplers.first_order:euler",
        "euler-ancestral": "ldm.diffusion.samplers.first_order:ddpm",
        "heun": "ldm.diffusion.samplers.heun:heun",
        "plms": "ldm.diffusion.samplers.plms:plms",
        "dpmpp-2m": "ldm.diffusion.samplers.dpm_solver:dpmpp_2m",
        "dpmpp-2m-sde": "ldm.diffusion.samplers.dpm_solver:dpmpp_2m_sde",
        "dpmpp-2s": "ldm.diffusion.samplers.dpm_solver:dpmpp_2s",
        "dpmpp-sde": "ldm.diffusion.samplers.midpoint:dpmpp_sde",
        "unipc": "ldm.diffusion.samplers.unipc:unipc",
        "deis": "ldm.diffusion.samplers.multistep:deis",
        "lms": "ldm.diffusion.samplers.multistep:lms",
        "kdpm2": "ldm.diffusion.samplers.midpoint:kdpm2",
        "kdpm2-ancestral": "ldm.diffusion.samplers.midpoint:kdpm2_ancestral",
        "lcm": "ldm.diffusion.samplers.consistency:lcm",
    },
)
LOSS_TERMS = Registry(  # of train-vae, in the order in which they are added
    "loss term",
    {
        "reconstruction": "ldm.training.losses.reconstruction:ReconstructionTerm",
        "equivariance": "ldm.training.losses.equivariance:EquivarianceTerm",
        "perceptual": "ldm.training.losses.perceptual:PerceptualTerm",
        "kl": "ldm.training.losses.kl:KLTerm",
        "codebook": "ldm.training.losses.codebook:CodebookTerm",
        "adversarial": "ldm.training.losses.adversarial:AdversarialTerm",
    },
)
DATA_SOURCES = Registry(  # the last one that matches `--data` is opened
    "data source",
    {
        "hub": "ldm.data.tables:HubSource",
        "folder": "ldm.data.folders:FolderSource",
        "parquet": "ldm.data.tables:ParquetSource",
        "shards": "ldm.data.shards:Shards",
        "cache": "ldm.data.cached:CachedData",
        "scenes": "ldm.data.scenes.dataset:ScenesDataset",
    },
)
STAGES = Registry(
    "training stage",
    {
        "autoencoder": "ldm.training.stages.autoencoder:AutoencoderStage",
        "unet": "ldm.training.stages.unet:UNetStage",
        "classifier": "ldm.training.stages.classifier:ClassifierStage",
    },
)
