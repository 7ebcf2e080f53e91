"""Conditioning on an image that is concatenated to the latents (Rombach et al. 2022, section 4.3)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import torch
from PIL import Image
from pydantic import Field, SerializeAsAny
from torch import Tensor, nn

from ldm.conditioning.base import (
    Conditioning,
    DenoiserInputs,
    Generate,
    Part,
    Sections,
    StoredPipeline,
    Subject,
    TrainingContext,
)
from ldm.conditioning.conditional_denoiser import ConditioningFn, pass_on
from ldm.conditioning.conditions import Conditions
from ldm.config.compatibility import check_same
from ldm.config.section import ByKind, Section
from ldm.data.images import to_bytes
from ldm.errors import UserError
from ldm.registry import SPATIAL
from ldm.storage.component import component_section, load_network, save_component
from ldm.storage.fields import Fields, load_fields
from ldm.storage.renames import current_fields

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ldm.checkpoint.pipeline import Pipeline
    from ldm.config.root import Config
    from ldm.data.loader import Batch
    from ldm.data.sources import Source
    from ldm.generation.request import Request

PIXELS = 3  # channels of an image
MASK = 1  # channels of a mask


class SpatialSection(Section):
    """Options of all kinds of images that are concatenated to the latents."""

    kind: str
    in_channels: int = Field(3, ge=1)  # of the image, map or mask
    channels: int = Field(3, ge=1)  # that are concatenated to the latents


# Of any registered kind.
SpatialConfig = Annotated[SerializeAsAny[SpatialSection], ByKind(SPATIAL)]


class SpatialIdentity(nn.Module):
    """An image that is concatenated as it is; it has no weights."""

    def __init__(self, config: SpatialSection) -> None:
        super().__init__()
        self.config = config

    def forward(self, image: Tensor) -> Tensor:
        """Return the image (B, C, h, w) unchanged."""
        return image


class SpatialConditioning(Conditioning):
    """Base of the kinds; never dropped, unlike other conditionings of the same model."""

    section: ClassVar[type[SpatialSection]]
    network: ClassVar[type[nn.Module]] = SpatialIdentity
    sections: ClassVar[Mapping[str, tuple[Any, Any]]] = {"spatial": (SpatialConfig | None, None)}
    training_options = frozenset({"sample_images"})
    guides = False

    def __init__(self, module: Any) -> None:
        self.module = module

    # --- configuration

    @classmethod
    def is_used(cls, sections: Sections) -> bool:
        return isinstance(sections.get("spatial"), cls.section)

    @classmethod
    def denoiser_inputs(cls, sections: Sections) -> DenoiserInputs:
        spatial = sections["spatial"]
        if sections.get("image") is not None:
            raise ValueError("image and spatial would need two images for each sample: set one of them to null")
        needed, rule = cls.needed_channels(spatial, sections["autoencoder"])
        if spatial.channels != needed:
            raise ValueError(f"spatial.channels is {spatial.channels}, but {rule} is {needed}: set it to {needed}")
        cls.check_data(spatial, sections)
        return DenoiserInputs(channels={"spatial.channels": spatial.channels})

    @classmethod
    def needed_channels(cls, spatial: Any, autoencoder: Any) -> tuple[int, str]:
        """Return the number of concatenated channels, and which options it follows from."""
        return spatial.in_channels, "spatial.in_channels"

    @classmethod
    def check_data(cls, spatial: Any, sections: Sections) -> None:
        """Raise ValueError if other sections do not fit."""
        return

    # --- modules and files

    @property
    def described(self) -> dict[str, Section]:
        return {"spatial": self.module.config}

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"spatial": self.module}

    def with_modules(self, modules: Mapping[str, Any]) -> SpatialConditioning:
        return type(self)(modules.get("spatial", self.module))

    @property
    def parts(self) -> dict[str, Part]:
        return {"spatial": ("ldm", type(self.module).__name__)}

    @classmethod
    def known_parts(cls) -> Mapping[str, tuple[Part, ...]]:
        return {"spatial": tuple(dict.fromkeys(("ldm", kind.network.__name__) for kind in SPATIAL.values()))}

    def save(self, places: Mapping[str, Path], dtype: torch.dtype | None, shard_size: int) -> None:
        if "spatial" in places:
            save_component(self.module, places["spatial"], dtype)

    @classmethod
    def load(cls, stored: StoredPipeline) -> Self | None:
        if stored.implied == cls.name:
            channels = stored.denoiser.in_channels - stored.autoencoder.latent_channels
            return cls.of_channels(channels) if channels > 0 else None
        if "spatial" not in stored.places:
            return None
        config = load_spatial_section(stored.places["spatial"])
        return (
            cls(load_network(cls.network, config, stored.places["spatial"], stored.dtype))
            if config.kind == cls.name
            else None
        )

    @classmethod
    def of_channels(cls, channels: int) -> Self:
        """Create the conditioning of a class of pipeline that has no folder for it."""
        return cls(cls.network(cls.section(kind=cls.name, in_channels=PIXELS, channels=channels)).eval())

    # --- training

    @classmethod
    def check_training(cls, config: Config, new: bool) -> None:
        for name in ("sample_prompts", "sample_classes"):
            if getattr(config.training.unet, name):
                raise UserError(
                    f"training.unet.{name} is set, but a model with spatial conditioning shows samples of the data: "
                    "set training.unet.sample_images instead"
                )

    @classmethod
    def create(cls, config: Config, source: Source, accelerator: Accelerator) -> Self:
        return cls(cls.network(config.spatial))

    @classmethod
    def adopt(cls, config: Config, source: Source, given: Pipeline, where: str) -> Self | None:
        found = next((each for each in given.conditionings.values() if isinstance(each, SpatialConditioning)), None)
        if found is None:
            return None
        check_same(found.module.config, config.spatial, "spatial", where)
        return found if isinstance(found, cls) else None

    def trained(self, context: TrainingContext) -> Mapping[str, nn.Module]:
        return self.modules if list(self.module.parameters()) else {}

    @classmethod
    def conditioning_fn(cls, config: Config) -> ConditioningFn:
        return pass_on("concat")

    def sample_rows(self, context: TrainingContext, generate: Generate) -> list[Image.Image] | None:
        """Return the condition, the sample and the original of each of `sample_images` images."""
        if not context.settings.sample_images:
            return []
        batch, shown = _example_batch(context), []
        assert batch.images is not None
        config, settings = context.config, context.settings
        for row, (caption, image) in enumerate(zip(batch.captions, to_bytes(batch.images), strict=True)):
            condition, options = self.example(batch, row, context)
            if getattr(config, "text", None) is not None:
                options |= {"prompt": caption, "guidance_scale": settings.sample_guidance_scale}
            if config.uses_labels:
                dropped = settings.condition_dropout
                guided = {"guidance_scale": settings.sample_guidance_scale} if dropped else {}
                options |= {"classes": batch.labels[row], **guided}
            shown += [condition.convert("RGB"), *generate(**options), Image.fromarray(image)]
        return shown

    @abstractmethod
    def example(self, batch: Batch, row: int, context: TrainingContext) -> tuple[Image.Image, dict[str, Any]]:
        """Return the condition of one sample as an image, and as keywords of `TextToImage`."""

    # --- inference

    @abstractmethod
    def channels(self, request: Request, size: tuple[int, int], pipeline: Pipeline) -> Tensor:
        """Return the channels (1, C, h, w) for images of `size`, width and height in pixels."""

    def encode_cond_and_uncond(
        self, subjects: Sequence[Subject], request: Request, size: tuple[int, int], pipeline: Pipeline
    ) -> tuple[Conditions, Conditions | None]:
        found = Conditions(concat=self.channels(request, size, pipeline))
        return found.expand(len(subjects)), found


@lru_cache(maxsize=1)
def _example_batch(context: TrainingContext) -> Batch:
    """Return a batch of held-out images if there are any, else of training images, with the noise of step 0."""
    from ldm.data.loader import BatchShare, TrainingData
    from ldm.data.preview import validation_of
    from ldm.data.validation import spread_over

    config, count = context.config, context.settings.sample_images
    data, only, seed = context.source.preview(count), None, config.training.seed
    if (validation := validation_of(context.source, config.data, count)) is not None:
        data, only = validation.source, spread_over(validation.indices, count)
    return TrainingData(data, config.data, BatchShare(count), seed, classes=config.uses_labels, only=only)[0, 0]


def load_spatial_section(folder: Path) -> SpatialSection:
    """Return the section in a folder's `config.json`.

    Raises:
        UserError: for an unknown kind or field.
    """
    path = folder / "config.json"
    return spatial_from_fields(load_fields(path), path)


def spatial_from_fields(fields: Fields, where: Path) -> SpatialSection:
    """Return the section of a `config.json`.

    Raises:
        UserError: for an unknown kind or field.
    """
    fields = current_fields("spatial", fields)
    kind = SPATIAL[str(fields.get("kind"))]
    unset = {name for name, value in fields.items() if name not in kind.section.model_fields and value in (0, [], None)}
    kept = {name: value for name, value in fields.items() if name not in unset}
    section: SpatialSection = component_section(kind.section, kept, where, kind.network.__name__)
    return section
