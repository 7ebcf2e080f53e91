"""The protocol of a conditioning: one kind of information that a denoiser generates from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
from PIL import Image
from torch import Tensor, nn

from ldm.conditioning.conditional_denoiser import ConditioningFn
from ldm.conditioning.conditions import Conditions
from ldm.config.section import Section
from ldm.data.random import StepRandom
from ldm.devices import moved
from ldm.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ldm.checkpoint.pipeline import Pipeline
    from ldm.config.root import Config
    from ldm.config.training import UNetStageConfig
    from ldm.data.cached import CachedData
    from ldm.data.loader import Batch
    from ldm.data.sources import Source
    from ldm.generation.request import Request
    from ldm.models.autoencoder.autoencoder import Autoencoder

Sections = Mapping[str, Any]  # sections of a configuration by name; None where a model has none
Part = tuple[str, str]  # library and class of a part of a pipeline, as in `model_index.json`
Subject = Any  # what one image of a request shows: a prompt, a class, or None
Generate = Callable[..., list[Image.Image]]  # keywords of `TextToImage.__call__` -> images

GUIDANCE_SCALE = 3.0  # of requests that leave it open, for models with something to guide away from


@dataclass(frozen=True)
class StoredPipeline:
    """What a saved pipeline says about its conditionings."""

    places: Mapping[str, Path]  # folders of the parts
    index: Mapping[str, Any]  # fields of `model_index.json`
    options: Mapping[str, Mapping[str, Any]]  # options of parts that follow from the class of pipeline
    denoiser: Any  # sections
    autoencoder: Any
    implied: str | None  # a conditioning without parts that follows from the class of pipeline
    dtype: torch.dtype  # of the weights


class DenoiserInputs(NamedTuple):
    """Sizes of what a conditioning feeds to the denoiser, by the option that sets each."""

    context: Mapping[str, int] = {}  # widths of the context, concatenated
    channels: Mapping[str, int] = {}  # channels that are concatenated to the latents
    pooled: int | None = None  # width of the pooled text


class Meta(NamedTuple):
    """A conditioning on the meta device, to count parameters and operations without weights or data."""

    inputs: tuple[Tensor, ...] = ()  # of the conditioning function, for one sample
    modules: Mapping[str, nn.Module] = {}  # trained together with the denoiser
    frozen: Callable[[], Any] | None = None  # forward passes outside of the trained network


@dataclass(frozen=True, eq=False)
class TrainingContext:
    """What the conditionings of a training share."""

    config: Config
    accelerator: Accelerator
    source: Source
    autoencoder: Autoencoder
    cache: CachedData | None = None

    @property
    def settings(self) -> UNetStageConfig:
        """The options of the stage."""
        return self.config.training.unet

    @property
    def device(self) -> torch.device:
        """This process' device."""
        return self.accelerator.device

    def to_device(self, tensor: Tensor) -> Tensor:
        """Move a tensor to the device without waiting for it."""
        return moved(tensor, self.device)

    @property
    def random(self) -> StepRandom:
        """The random streams of the training."""
        return StepRandom(self.config.training.seed)

    def dropped(self, batch: Batch) -> list[bool]:
        """Choose the samples that lose their condition, for classifier-free guidance (Ho and Salimans 2022)."""
        numbers = self.random.uniform("condition", batch.step, batch.slots).tolist()
        return [number < self.settings.condition_dropout for number in numbers]


class Conditioning(ABC):
    """One kind of information about an image, with everything that belongs to it.

    A class owns sections of the configuration, modules and their folders on disk, the inputs of a training batch and
    of a request at inference. An instance holds modules and facts of one pipeline and never changes.
    """

    name: ClassVar[str]  # in the registry and in `Pipeline.conditionings`
    sections: ClassVar[Mapping[str, tuple[Any, Any]]] = {}  # of a configuration: name -> (annotation, default)
    training_options: ClassVar[frozenset[str]] = frozenset()  # of `training.unet`, that only some kinds use
    request_options: ClassVar[frozenset[str]] = frozenset()  # of a `Request`, that only some kinds use
    data_options: ClassVar[frozenset[str]] = frozenset()  # of `data`, that only some kinds use
    uses_labels: ClassVar[bool] = False  # training needs the class of each image
    guides: ClassVar[bool] = True  # guidance can move away from its unconditional row
    replaces_guidance: ClassVar[bool] = False  # the denoiser itself takes the guidance scale
    starts_from_image: ClassVar[bool] = True  # sampling starts from the image of a request, if it has one

    # --- configuration -----------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def is_used(cls, sections: Sections) -> bool:
        """Return whether a configuration, or a pipeline described by the same sections, has this conditioning."""

    @classmethod
    def complete(cls, config: Config, saved: Config | None) -> Config:
        """Fill in options that follow from a `source`; `saved` is the configuration of a run that continues.

        Raises:
            UserError: if the source is missing, or differs from what the configuration says.
        """
        return config

    @classmethod
    def denoiser_inputs(cls, sections: Sections) -> DenoiserInputs:
        """Return the sizes of what the denoiser gets.

        Raises:
            ValueError: if the sections do not fit together.
        """
        return DenoiserInputs()

    # --- modules and files -------------------------------------------------------------------------------------------

    @property
    def described(self) -> dict[str, Section]:
        """Sections that describe the modules, by name."""
        return {}

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """Networks with weights, by name."""
        return {}

    def check(self, pipeline: Pipeline) -> None:
        """Check what sections do not contain, such as a tokenizer or the names of classes.

        Raises:
            ValueError: if the modules do not fit each other or the pipeline.
        """
        return

    def with_modules(self, modules: Mapping[str, Any]) -> Conditioning:
        """Return the same conditioning with other networks, by name; names that it does not have are ignored."""
        return self

    @property
    def parts(self) -> dict[str, Part]:
        """Parts of a pipeline that `save` writes."""
        return {}

    @classmethod
    def known_parts(cls) -> Mapping[str, tuple[Part, ...]]:
        """Return parts of a pipeline that belong to this kind, with the classes that can be loaded."""
        return {}

    @property
    def facts(self) -> dict[str, Any]:
        """Fields of `model_index.json`."""
        return {}

    def matches(self, options: Mapping[str, Mapping[str, Any]]) -> bool:
        """Return whether the modules have the options that a class of pipeline implies, by part."""
        return True

    def save(self, places: Mapping[str, Path], dtype: torch.dtype | None, shard_size: int) -> None:
        """Write each part to its folder, weights as `dtype` if given."""
        return

    @classmethod
    @abstractmethod
    def load(cls, stored: StoredPipeline) -> Self | None:
        """Read the conditioning of a saved pipeline; None if it has none of this kind.

        Raises:
            UserError: if a folder is incomplete or asks for what is not supported.
        """

    # --- training ----------------------------------------------------------------------------------------------------

    @classmethod
    def check_training(cls, config: Config, new: bool) -> None:
        """Raise UserError for a configuration that cannot be trained, `new` if modules are created from scratch."""
        return

    @classmethod
    def check_source(cls, source: Source) -> None:
        """Check that the data contains what training needs.

        Raises:
            UserError: if it does not.
        """
        return

    @classmethod
    @abstractmethod
    def create(cls, config: Config, source: Source, accelerator: Accelerator) -> Self:
        """Create new modules; called by every process."""

    @classmethod
    def adopt(cls, config: Config, source: Source, given: Pipeline, where: str) -> Self | None:
        """Take over the modules of the model `where`; None if it has no such conditioning.

        Raises:
            UserError: if it is not what the configuration describes.
        """
        return cls.of(given)

    @classmethod
    def resume(cls, config: Config, source: Source, saved: Pipeline, where: str) -> Self:
        """Take over the modules of a run, whose trained weights follow from its state."""
        found = cls.adopt(config, source, saved, where)
        if found is None:
            raise UserError(f"the run {where} has no conditioning {cls.name!r}, which the configuration describes")
        return found

    @classmethod
    def of(cls, pipeline: Pipeline) -> Self | None:
        """Return the conditioning of this class in a pipeline, if any."""
        found = pipeline.conditionings.get(cls.name)
        return found if isinstance(found, cls) else None

    def trained(self, context: TrainingContext) -> Mapping[str, nn.Module]:
        """Return modules that are trained together with the denoiser."""
        return self.modules

    def learning_rates(self, context: TrainingContext) -> Mapping[str, float]:
        """Learning rates of these modules, as in `learning_rates` of a stage."""
        return {}

    def needs_images(self, config: Config) -> bool:
        """Return whether training needs the pixels of each image even if its latents are cached."""
        return False

    @abstractmethod
    def training_inputs(self, batch: Batch, context: TrainingContext) -> tuple[Tensor, ...]:
        """Return the inputs of `conditioning_fn` for a batch, on the device, a share of them dropped."""

    @classmethod
    @abstractmethod
    def conditioning_fn(cls, config: Config) -> ConditioningFn:
        """Return the function that the trained network calls in its forward pass."""

    @classmethod
    def meta(cls, config: Config) -> Meta:
        """Create trained modules and inputs of one sample on the meta device, which is the current one."""
        return Meta()

    def sample_options(self, context: TrainingContext) -> dict[str, Any] | None:
        """Return keywords of `TextToImage` for the sample grid of a training; None for no grid."""
        return {}

    def sample_rows(self, context: TrainingContext, generate: Generate) -> list[Image.Image] | None:
        """Return images for a sample grid that needs data: condition, sample and original of each; else None."""
        return None

    # --- inference ---------------------------------------------------------------------------------------------------

    def resolve(self, request: Request, pipeline: Pipeline) -> Request:
        """Return a request with defaults for the inputs that it leaves out.

        Raises:
            UserError: if it lacks what the model needs.
        """
        return request

    @abstractmethod
    def encode_cond_and_uncond(
        self, subjects: Sequence[Subject], request: Request, size: tuple[int, int], pipeline: Pipeline
    ) -> tuple[Conditions, Conditions | None]:
        """Encode subjects, one row each, and in one row the condition that guidance moves away from, if any.

        `size` is width and height of the images in pixels.
        """

    def length(self, subject: Subject, request: Request) -> int:
        """Return the number of text windows of a subject; only subjects of equal length share a batch."""
        return 1
