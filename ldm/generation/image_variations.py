"""Variations of an image: what a U-Net is told of it instead of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image
from torch import Tensor

from ldm.checkpoint.parts import Parts
from ldm.conditioning.image.encoders import CLIPImageConfig, ImageEncoder
from ldm.errors import UserError
from ldm.generation.condition import Condition
from ldm.generation.init_image import cover, pixels_of
from ldm.generation.request import Request, Subject
from ldm.models import tiling


class ImageConditioner:
    """The image of a request through the model's encoder; without a strength or a mask nothing else is made of it."""

    def __init__(self, parts: Parts, encoder: ImageEncoder, guidance_scale: float) -> None:
        self.parts, self.encoder, self.guidance_scale = parts, encoder, guidance_scale

    def resolve(self, request: Request) -> Request:
        """An image alone can be asked for; it is the `reference`, and drawing starts from it only if told."""
        if request.prompts or request.negative_prompt or request.classes or request.negative_class is not None:
            raise UserError("this model varies an image, it knows no prompts and no classes: give an image alone")
        if request.image is None and request.reference is None:
            raise UserError("there is no image to vary: give an image (--image)")
        if request.size_conditioning is not None or request.long_prompts or request.prompt_syntax != "plain":
            raise UserError("size_conditioning, prompt syntax and long prompts are for models of text: leave them out")
        if request.reference is None:
            starts = request.strength is not None or request.mask is not None
            request = replace(request, reference=request.image, image=request.image if starts else None)
        scale = self.guidance_scale if request.guidance_scale is None else request.guidance_scale
        return replace(request, guidance_scale=scale)

    def __call__(self, subjects: Sequence[Subject], request: Request, size: tuple[int, int]) -> Condition:
        """Every image is a variation of the same one."""
        assert request.reference is not None  # a resolved request has one
        return Condition(self.encoder(self._given(request.reference))).expand(len(subjects))

    def encode_cond_and_uncond(
        self, subjects: Sequence[Subject], request: Request, size: tuple[int, int]
    ) -> tuple[Condition, Condition | None]:
        """Guided away from are zeros, which a share of the images had in training."""
        positive = self([*subjects, None], request, size)
        return positive.rows(slice(len(subjects))), positive.rows(slice(len(subjects), None)).silent()

    def length(self, subject: Subject, request: Request) -> int:
        """The tokens of one image, which are as many for all."""
        return 1

    def _given(self, image: Image.Image) -> Tensor:
        """What the encoder takes of the image: its middle in pixels (1, 3, H, W) in [-1, 1], or their latents."""
        config, autoencoder, weight = self.encoder.config, self.parts.autoencoder, next(self.encoder.parameters())
        if isinstance(config, CLIPImageConfig):
            fitted = cover(image.convert("RGB"), (config.image_size,) * 2, Image.Resampling.BICUBIC)
            return pixels_of(fitted, weight.device).to(weight)
        side = self.parts.unet.config.sample_size * autoencoder.config.downsampling_factor
        pixels = pixels_of(cover(image.convert("RGB"), (side, side)), self.parts.device)
        return tiling.encode(autoencoder, pixels).mode().to(weight)
