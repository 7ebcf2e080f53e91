"""Conditioning on a mask and the rest of the image, for inpainting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ldm.conditioning.base import Meta, TrainingContext
from ldm.conditioning.spatial import MASK, SpatialConditioning, SpatialIdentity, SpatialSection
from ldm.data.fitting import fit_to, mask_of, pixels_of
from ldm.data.images import to_bytes
from ldm.data.masks import free_form_masks
from ldm.errors import UserError
from ldm.models import tiling
from ldm.models.autoencoder.autoencoder import Autoencoder

if TYPE_CHECKING:
    from ldm.checkpoint.pipeline import Pipeline
    from ldm.config.root import Config
    from ldm.data.loader import Batch
    from ldm.generation.request import Request


class InpaintingConfig(SpatialSection):
    """The mask of the region to fill, and the latents of the image without it."""

    kind: Literal["inpainting"] = "inpainting"
    in_channels: int = Field(MASK, ge=1)  # of the mask


class Inpainting(SpatialConditioning):
    """Mask and masked latents, in the order of Stable Diffusion's inpainting models."""

    name = "inpainting"
    section = InpaintingConfig

    @classmethod
    def needed_channels(cls, spatial: Any, autoencoder: Any) -> tuple[int, str]:
        needed = autoencoder.latent_channels + spatial.in_channels
        return needed, f"autoencoder.latent_channels ({autoencoder.latent_channels}) + spatial.in_channels"

    @classmethod
    def of_channels(cls, channels: int) -> Self:
        return cls(SpatialIdentity(InpaintingConfig(in_channels=MASK, channels=channels)).eval())

    def needs_images(self, config: Config) -> bool:
        return True

    def training_inputs(self, batch: Batch, context: TrainingContext) -> tuple[Tensor, ...]:
        """Mask and masked latents (B, 1 + C, h, w)."""
        assert batch.images is not None  # `needs_images`
        images, masks = context.to_device(batch.images), context.to_device(_masks(batch, context))
        with torch.no_grad():
            latents = context.autoencoder.encode(hide(images, masks)).mode()
        return (inpainting_channels(masks, latents),)

    @classmethod
    def meta(cls, config: Config) -> Meta:
        side = config.data.size // config.autoencoder.downsampling_factor
        autoencoder, images = Autoencoder(config.autoencoder), torch.empty(1, 3, config.data.size, config.data.size)
        channels = torch.empty(1, config.spatial.channels, side, side)
        return Meta((channels,), frozen=lambda: autoencoder.encode(images).mode())

    def example(self, batch: Batch, row: int, context: TrainingContext) -> tuple[Image.Image, dict[str, Any]]:
        assert batch.images is not None
        masks = _masks(batch, context)
        hidden, whole = (Image.fromarray(to_bytes(each)[row]) for each in (hide(batch.images, masks), batch.images))
        return hidden, {"image": whole, "mask": Image.fromarray((255 * masks[row, 0]).byte().numpy())}

    def resolve(self, request: Request, pipeline: Pipeline) -> Request:
        if request.image is None or request.mask is None:
            raise UserError("this is an inpainting model: give an image and a mask (--image and --mask)")
        return request

    def channels(self, request: Request, size: tuple[int, int], pipeline: Pipeline) -> Tensor:
        assert request.image is not None  # `resolve` requires both
        assert request.mask is not None
        scaled, device = request.size is not None, pipeline.device
        masks = mask_of(fit_to(request.mask, size, scaled), device)
        pixels = pixels_of(fit_to(request.image.convert("RGB"), size, scaled), device)
        latents = tiling.encode(pipeline.autoencoder, hide(pixels, masks), pipeline.tile).mode().float()
        return inpainting_channels(masks, latents)


def _masks(batch: Batch, context: TrainingContext) -> Tensor:
    assert batch.images is not None
    height, width = batch.images.shape[-2:]
    return free_form_masks(context.random, batch.step, batch.slots, (height, width))


def hide(images: Tensor, masks: Tensor) -> Tensor:
    """Replace images (B, 3, H, W) by grey, which is zero, where masks (B, 1, H, W) are 1."""
    return images * (1 - masks)


def inpainting_channels(masks: Tensor, latents: Tensor) -> Tensor:
    """Combine masks (B, 1, H, W) and masked latents (B, C, h, w) to (B, 1 + C, h, w).

    Order and nearest-neighbour scaling are those of Stable Diffusion's inpainting models.
    """
    return torch.cat([F.interpolate(masks, size=latents.shape[-2:]).to(latents), latents], dim=1)
