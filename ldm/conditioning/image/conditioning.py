"""Conditioning on an image: its embedding replaces text, and the model generates variations of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor, nn

from ldm.conditioning.base import (
    GUIDANCE_SCALE,
    Conditioning,
    DenoiserInputs,
    Meta,
    Part,
    Sections,
    StoredPipeline,
    Subject,
    TrainingContext,
)
from ldm.conditioning.conditional_denoiser import ConditioningFn
from ldm.conditioning.conditions import Conditions
from ldm.conditioning.image import files
from ldm.conditioning.image.encoders import ImageConfig, ImageEncoder, ImageSection, make_image_encoder
from ldm.config.compatibility import check_same
from ldm.config.section import Section
from ldm.data.fitting import cover, pixels_of
from ldm.data.images import read_image
from ldm.errors import UserError
from ldm.models import tiling

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ldm.checkpoint.pipeline import Pipeline
    from ldm.config.root import Config
    from ldm.data.loader import Batch
    from ldm.data.sources import Source
    from ldm.generation.request import Request


class ImageEmbedding(Conditioning):
    """The embedding of an image as context; dropped embeddings are zeros, which guidance moves away from."""

    name = "image"
    sections: ClassVar[Mapping[str, tuple[Any, Any]]] = {"image": (ImageConfig | None, None)}
    training_options = frozenset({"condition_dropout", "sample_images", "sample_image", "sample_guidance_scale"})
    request_options = frozenset({"reference"})

    def __init__(self, encoder: ImageEncoder) -> None:
        self.encoder = encoder

    # --- configuration

    @classmethod
    def is_used(cls, sections: Sections) -> bool:
        return sections.get("image") is not None

    @classmethod
    def denoiser_inputs(cls, sections: Sections) -> DenoiserInputs:
        section: ImageSection = sections["image"]
        section.check_latents(sections["autoencoder"].latent_channels)
        return DenoiserInputs(context={f"image.{section.width_option}": section.context_width})

    # --- modules and files

    @property
    def described(self) -> dict[str, Section]:
        return {"image": self.encoder.config}

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {"image_encoder": self.encoder}

    def with_modules(self, modules: Mapping[str, Any]) -> ImageEmbedding:
        return ImageEmbedding(modules.get("image_encoder", self.encoder))

    @property
    def parts(self) -> dict[str, Part]:
        return {"image_encoder": self.encoder.part, **self.encoder.further_parts}

    @classmethod
    def known_parts(cls) -> Mapping[str, tuple[Part, ...]]:
        return files.known_parts()

    def save(self, places: Mapping[str, Path], dtype: torch.dtype | None, shard_size: int) -> None:
        files.save_image_encoder(self.encoder, places["image_encoder"], dtype, places.get("processor"))

    @classmethod
    def load(cls, stored: StoredPipeline) -> Self | None:
        if "image_encoder" not in stored.places:
            return None
        return cls(files.load_image_encoder(stored.places["image_encoder"], stored.dtype))

    # --- training

    @classmethod
    def check_training(cls, config: Config, new: bool) -> None:
        section, settings = config.image, config.training.unet
        source = getattr(section, "source", None)
        if not section.takes_latents and settings.cache_latents:
            raise UserError(f"image.kind {section.kind} needs pixels: set training.unet.cache_latents to false")
        if new and section.frozen and source is None:
            raise UserError("image.frozen without image.source would keep random weights: set one of the two")
        if (settings.sample_image is None) != (settings.sample_images == 0):
            raise UserError("training.unet.sample_image and sample_images belong together: set both or none")
        if settings.sample_image is not None:
            read_image(Path(settings.sample_image))

    @classmethod
    def create(cls, config: Config, source: Source, accelerator: Accelerator) -> Self:
        return cls(
            files.load_source(config.image)
            if getattr(config.image, "source", None)
            else make_image_encoder(config.image)
        )

    @classmethod
    def adopt(cls, config: Config, source: Source, given: Pipeline, where: str) -> Self | None:
        found = cls.of(given)
        if found is None:
            return None
        own, asked = found.encoder.config, config.image
        if own.kind != asked.kind:
            raise UserError(
                f"the model {where} has an image encoder of kind {own.kind}, but image.kind is {asked.kind}"
            )
        if getattr(asked, "source", None) is None:
            check_same(own, asked, "image", where)
        return found

    def trained(self, context: TrainingContext) -> Mapping[str, nn.Module]:
        return {} if context.config.image.frozen else self.modules

    def needs_images(self, config: Config) -> bool:
        return not self.encoder.takes_latents

    def training_inputs(self, batch: Batch, context: TrainingContext) -> tuple[Tensor, ...]:
        """Return latents or images, or a frozen encoder's context (B, L, D); and 0 where dropped, else 1, (B, 1, 1)."""
        kept = context.to_device(torch.tensor([not dropped for dropped in context.dropped(batch)]))[:, None, None]
        with torch.no_grad(), context.accelerator.autocast():
            given = _latents(batch, context) if self.encoder.takes_latents else _images(batch, context)
            return (self.encoder(given) if context.config.image.frozen else given), kept

    @classmethod
    def conditioning_fn(cls, config: Config) -> ConditioningFn:
        if config.image.frozen:
            return lambda network, context, kept: ({"context": context * kept}, {})
        return lambda network, given, kept: ({"context": network.image_encoder(given) * kept}, {})

    @classmethod
    def meta(cls, config: Config) -> Meta:
        encoder, side = make_image_encoder(config.image), config.data.size
        latent = side // config.autoencoder.downsampling_factor
        shape = (config.autoencoder.latent_channels, latent, latent) if encoder.takes_latents else (3, side, side)
        given, kept = torch.empty(1, *shape), torch.ones(1, 1, 1)
        if config.image.frozen:
            return Meta((encoder(given), kept), frozen=lambda: encoder(given))
        return Meta((given, kept), {"image_encoder": encoder})

    def sample_options(self, context: TrainingContext) -> dict[str, Any] | None:
        settings = context.settings
        if settings.sample_image is None:
            return None
        image = read_image(Path(settings.sample_image))
        return {"image": image, "num_images": settings.sample_images, "guidance_scale": settings.sample_guidance_scale}

    # --- inference

    def resolve(self, request: Request, pipeline: Pipeline) -> Request:
        """Use the image as `reference`; sampling starts from it only with a strength or a mask."""
        if request.image is None and request.reference is None:
            raise UserError("this model generates variations of an image: give one (--image)")
        if request.reference is None:
            starts = request.strength is not None or request.mask is not None
            request = replace(request, reference=request.image, image=request.image if starts else None)
        scale = GUIDANCE_SCALE if request.guidance_scale is None else request.guidance_scale
        return replace(request, guidance_scale=scale)

    def encode_cond_and_uncond(
        self, subjects: Sequence[Subject], request: Request, size: tuple[int, int], pipeline: Pipeline
    ) -> tuple[Conditions, Conditions | None]:
        assert request.reference is not None  # `resolve` sets it
        found = Conditions(context=self.encoder(self._given(request.reference, pipeline)))
        return found.expand(len(subjects)), found.map(torch.zeros_like)

    def _given(self, image: Image.Image, pipeline: Pipeline) -> Tensor:
        """Return the encoder's input: the center of the image in pixels (1, 3, H, W) in [-1, 1], or its latents."""
        autoencoder, weight, rgb = pipeline.autoencoder, next(self.encoder.parameters()), image.convert("RGB")
        if not self.encoder.takes_latents:
            side = self.encoder.config.side
            return pixels_of(cover(rgb, (side, side), Image.Resampling.BICUBIC), weight.device).to(weight)
        side = pipeline.denoiser.config.sample_size * autoencoder.config.downsampling_factor
        pixels = pixels_of(cover(rgb, (side, side)), pipeline.device)
        return tiling.encode(autoencoder, pixels).mode().to(weight)


def _images(batch: Batch, context: TrainingContext) -> Tensor:
    assert batch.images is not None  # `needs_images`
    return context.to_device(batch.images)


def _latents(batch: Batch, context: TrainingContext) -> Tensor:
    """Return the mode of each image's posterior, as at inference."""
    if context.cache is None:
        return context.autoencoder.encode(_images(batch, context)).mode()
    return context.autoencoder.posterior(context.to_device(context.cache.moments(batch.indices))).mode()
