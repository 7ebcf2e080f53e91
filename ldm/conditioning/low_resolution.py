"""Conditioning on a small image, for super-resolution."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image
from torch import Tensor

from ldm.conditioning.base import Meta, Sections, TrainingContext
from ldm.conditioning.spatial import SpatialConditioning, SpatialSection
from ldm.data.degrading import small_images
from ldm.data.fitting import fit_to, pixels_of
from ldm.data.images import to_bytes
from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.checkpoint.pipeline import Pipeline
    from ldm.config.root import Config
    from ldm.data.loader import Batch
    from ldm.generation.request import Request


class LowResolutionConfig(SpatialSection):
    """A small image with as many pixels as there are latents."""

    kind: Literal["low_resolution"] = "low_resolution"


class LowResolution(SpatialConditioning):
    """A small image with as many pixels as there are latents, with a little noise in training if configured."""

    name = "low_resolution"
    section = LowResolutionConfig
    data_options = frozenset({"low_res_noise_std"})
    starts_from_image = False

    @classmethod
    def check_data(cls, spatial: Any, sections: Sections) -> None:
        if sections["autoencoder"].downsampling_factor == 1:
            raise ValueError("spatial.kind low_resolution needs an autoencoder that downsamples, not kind identity")

    def needs_images(self, config: Config) -> bool:
        return True

    def training_inputs(self, batch: Batch, context: TrainingContext) -> tuple[Tensor, ...]:
        """Small images (B, 3, h, w)."""
        return (self._small(batch, context, context.device),)

    @classmethod
    def meta(cls, config: Config) -> Meta:
        side = config.data.size // config.autoencoder.downsampling_factor
        return Meta((torch.empty(1, config.spatial.channels, side, side),))

    def example(self, batch: Batch, row: int, context: TrainingContext) -> tuple[Image.Image, dict[str, Any]]:
        small = Image.fromarray(to_bytes(self._small(batch, context, torch.device("cpu")))[row])
        factor = context.autoencoder.config.downsampling_factor
        large = small.resize((factor * small.width, factor * small.height), Image.Resampling.NEAREST)
        return large, {"image": small}

    def _small(self, batch: Batch, context: TrainingContext, device: torch.device) -> Tensor:
        assert batch.images is not None  # `needs_images`
        factor, noise = context.autoencoder.config.downsampling_factor, context.config.data.low_res_noise_std
        images = context.to_device(batch.images) if device == context.device else batch.images.to(device)
        return small_images(images, factor, context.random, batch.step, batch.slots, noise)

    def resolve(self, request: Request, pipeline: Pipeline) -> Request:
        if request.image is None:
            raise UserError("this is a super-resolution model: give a small image (--image)")
        if request.mask is not None or request.strength not in (None, 1):
            raise UserError("this model enlarges the whole image: leave mask and strength out")
        return replace(request, strength=1.0)

    def channels(self, request: Request, size: tuple[int, int], pipeline: Pipeline) -> Tensor:
        assert request.image is not None  # `resolve` requires it
        factor = pipeline.autoencoder.config.downsampling_factor
        small = (size[0] // factor, size[1] // factor)
        return pixels_of(fit_to(request.image.convert("RGB"), small, request.size is not None), pipeline.device)
