"""Conditioning on an image to edit by an instruction (InstructPix2Pix, Brooks et al. 2023)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image
from torch import Tensor

from ldm.conditioning.base import TrainingContext
from ldm.conditioning.spatial import SpatialConditioning, SpatialSection
from ldm.conditioning.text.composition import Composed
from ldm.data.fitting import fit_to, pixels_of
from ldm.errors import UserError
from ldm.models import tiling
from ldm.models.autoencoder.distribution import unscale

if TYPE_CHECKING:
    from ldm.checkpoint.pipeline import Pipeline
    from ldm.config.root import Config
    from ldm.data.loader import Batch
    from ldm.generation.request import Request

IMAGE_GUIDANCE_SCALE = 1.5  # of requests that leave it open, as in the paper's examples


class ImageEditConfig(SpatialSection):
    """The latents of the image to edit, without the autoencoder's scaling factor."""

    kind: Literal["image_edit"] = "image_edit"


class ImageEdit(SpatialConditioning):
    """Latents of the image to edit, unscaled; guidance has one scale for the text and one for the image."""

    name = "image_edit"
    section = ImageEditConfig
    request_options = frozenset({"image_guidance_scale"})
    starts_from_image = False

    @classmethod
    def needed_channels(cls, spatial: Any, autoencoder: Any) -> tuple[int, str]:
        return autoencoder.latent_channels, "autoencoder.latent_channels"

    @classmethod
    def check_training(cls, config: Config, new: bool) -> None:
        raise UserError(
            "spatial.kind image_edit needs pairs of an image and its edited version, which no data source has: "
            "such models can be loaded and converted, but not trained"
        )

    def training_inputs(self, batch: Batch, context: TrainingContext) -> tuple[Tensor, ...]:
        raise NotImplementedError  # `check_training` rejects it

    def example(self, batch: Batch, row: int, context: TrainingContext) -> tuple[Image.Image, dict[str, Any]]:
        raise NotImplementedError  # `check_training` rejects it

    def resolve(self, request: Request, pipeline: Pipeline) -> Request:
        if request.image is None:
            raise UserError("this model edits an image by an instruction: give an image (--image)")
        if request.mask is not None or request.strength not in (None, 1):
            raise UserError("this model edits the whole image: leave mask and strength out")
        if any(isinstance(prompt, Composed) for prompt in request.prompts):
            raise UserError("this model takes one instruction for each image: leave AND out of the prompt")
        scale = IMAGE_GUIDANCE_SCALE if request.image_guidance_scale is None else request.image_guidance_scale
        if request.guidance_scale == 1 and request.image_guidance_scale is None:
            scale = 1.0
        return replace(request, strength=1.0, image_guidance_scale=scale)

    def channels(self, request: Request, size: tuple[int, int], pipeline: Pipeline) -> Tensor:
        assert request.image is not None  # `resolve` requires it
        pixels = pixels_of(fit_to(request.image.convert("RGB"), size, request.size is not None), pipeline.device)
        latents = tiling.encode(pipeline.autoencoder, pixels, pipeline.tile).mode().float()
        return unscale(latents, pipeline.autoencoder.config)
