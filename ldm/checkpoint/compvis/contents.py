"""What a single file holds: its networks' configurations, where their names begin, and what else may be there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

from torch import nn

from ldm.checkpoint.compvis.autoencoder_rules import autoencoder_rules
from ldm.checkpoint.compvis.condition_rules import condition_rules
from ldm.checkpoint.compvis.rules import Rules
from ldm.checkpoint.compvis.unet_rules import unet_rules
from ldm.conditioning.classes import ClassEmbedder, ClassesConfig
from ldm.conditioning.segmentation_map import SpatialRescaler
from ldm.conditioning.spatial import SpatialConfig
from ldm.conditioning.text.encoder import TextConfig, make_text_encoder
from ldm.config.diffusion import DiffusionConfig
from ldm.config.root import Config
from ldm.config.section import Section
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.config import AnyAutoencoderConfig
from ldm.models.unet.config import UNetConfig
from ldm.models.unet.unet import UNet

# Where the names of a network begin in files of a whole model; networks alone have none of it.
UNET, FIRST_STAGE, CONDITION, CONDITIONS = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.",
    "conditioner.embedders.",
)
ALONE = {"unet": "input_blocks.0.0.weight", "autoencoder": "encoder.conv_in.weight"}  # by which they are known

# The schedule's tables and counters that whole models carry: our configuration has the schedule itself.
BUFFERS = frozenset(
    [
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
        "lvlb_weights",
        "logvar",
        "cond_ids",
        "denoiser.sigmas",
        "scale_factor",
        "global_step",
        "epoch",
    ]
)
EMA = "model_ema."
EMA_COUNTERS = frozenset({"model_ema.decay", "model_ema.num_updates"})
# What trained a first stage, and its EMA in files of whole models, which the original never reads.
LOSSES = ("loss.", "first_stage_model.loss.", "model_ema.loss", "first_stage_model.model_ema.")


class Contents(Section):
    """The sections of a configuration that a file holds; None: it does not."""

    autoencoder: AnyAutoencoderConfig | None = None
    unet: UNetConfig | None = None
    text: TextConfig | None = None
    text_2: TextConfig | None = None
    classes: ClassesConfig | None = None
    spatial: SpatialConfig | None = None
    diffusion: DiffusionConfig | None = None
    # How plain attention of the file stores queries, keys and values: grouped by head, or by kind.
    attention_order: Literal["heads", "kinds"] = "heads"
    zeros_for_empty_prompt: bool = False  # guidance without a negative prompt is away from zeros

    @classmethod
    def of_config(cls, config: Config) -> Contents:
        """Return all networks that a configuration describes."""
        whole = cls(**{name: getattr(config, name) for name in cls.model_fields if hasattr(config, name)})
        if whole.unet is None:
            return cls(autoencoder=whole.autoencoder)
        return whole.model_copy(update={"zeros_for_empty_prompt": whole.text_2 is not None})  # so is SDXL sampled

    @property
    def conditions(self) -> list[str]:
        """Names of the sections of networks that condition the U-Net."""
        names = [name for name in ("text", "text_2", "classes") if getattr(self, name) is not None]
        return names + ["spatial"] * (self.spatial is not None and self.spatial.kind == "segmentation_map")

    @property
    def is_sdxl(self) -> bool:
        """Whether the model is of SDXL's kind, base or refiner, which `sgm` configures."""
        return self.unet is not None and self.unet.addition_embed_type == "text_time" and self.text is not None

    @property
    def networks(self) -> list[str]:
        """Names of the sections that are networks with weights in the file."""
        return [name for name in ("unet", "autoencoder") if getattr(self, name) is not None] + self.conditions

    def make(self, name: str) -> nn.Module:
        """Create the network of a section, with new weights."""
        return MAKERS[name](getattr(self, name))

    def rules(self, prefixes: dict[str, str]) -> dict[str, Rules]:
        """Return the rules of each network.

        Raises:
            UserError: for one that the original has no class for.
        """
        return {name: self._rules(name).prefixed(prefixes[name]) for name in self.networks}

    def _rules(self, name: str) -> Rules:
        if name == "unet":
            assert self.unet is not None
            return unet_rules(self.unet, heads_first=self.attention_order == "heads")
        if name == "autoencoder":
            assert self.autoencoder is not None
            return autoencoder_rules(self.autoencoder)
        return condition_rules(getattr(self, name), name)

    def prefixes(self) -> dict[str, str]:
        """Return where the names of each network begin in a file that we write."""
        found = {"unet": UNET, "autoencoder": FIRST_STAGE if self.unet is not None else ""}
        return found | self._condition_prefixes()

    def prefixes_in(self, names: Iterable[str]) -> dict[str, str]:
        """Return where the names of each network begin in a file with such names."""
        names = set(names)
        found = {"unet": UNET, "autoencoder": FIRST_STAGE}
        found |= {name: "" for name, key in ALONE.items() if key in names}
        return found | self._condition_prefixes()

    def _condition_prefixes(self) -> dict[str, str]:
        """Return the prefixes of conditions: models of `sgm` (SDXL) number them, the others have one."""
        names = self.conditions
        if not self.is_sdxl:
            return dict.fromkeys(names, CONDITION)
        return {name: f"{CONDITIONS}{number}." for number, name in enumerate(names)}

    def within(self, names: Iterable[str]) -> Contents:
        """Return the networks that a file with such names contains: all, unless it contains a single network."""
        names = set(names)
        wholes = {"unet": UNET + ALONE["unet"], "autoencoder": FIRST_STAGE + ALONE["autoencoder"]}
        present = [name for name, key in ALONE.items() if key in names or wholes[name] in names]
        if len(present) != 1 or any(name.startswith((CONDITION, CONDITIONS)) for name in names):
            return self
        kept = {"unet": ("unet", "diffusion", "attention_order"), "autoencoder": ("autoencoder",)}[present[0]]
        return Contents(**{name: getattr(self, name) for name in kept})


MAKERS: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "autoencoder": Autoencoder,
    "text": make_text_encoder,
    "text_2": make_text_encoder,
    "classes": ClassEmbedder,
    "spatial": SpatialRescaler,
}
