"""Sizes of images and of their latents."""

from __future__ import annotations

from torch import Tensor

from ldm.checkpoint.pipeline import Pipeline
from ldm.errors import UserError
from ldm.generation.request import Request


def image_size(pipeline: Pipeline, request: Request) -> tuple[int, int]:
    """Return width and height in pixels of a request's images; an input image is cropped to a supported size."""
    if request.size is not None:
        return request.size
    factor = pipeline.autoencoder.config.downsampling_factor
    given = request.image or request.layout
    if given is None:
        side = pipeline.denoiser.config.sample_size * factor
        return side, side
    multiple, scale = factor * pipeline.denoiser.config.multiple, factor if enlarges(pipeline) else 1
    width, height = (side * scale // multiple * multiple for side in given.size)
    if not width or not height:
        raise UserError(
            f"the image is {given.width}x{given.height} pixels: this model needs at least {multiple // scale} "
            "in width and height"
        )
    return width, height


def latent_shape(pipeline: Pipeline, request: Request, latents: Tensor | None = None) -> tuple[int, int, int]:
    """Return (C, h, w) of one image's latents, which given `latents` (images, C, h, w) decide.

    Raises:
        UserError: for a size that the networks cannot halve as often as they do, and latents of another shape.
    """
    channels, factor = pipeline.autoencoder.config.latent_channels, pipeline.autoencoder.config.downsampling_factor
    width, height = image_size(pipeline, request)
    if latents is not None:
        given = (latents.shape[-1] * factor, latents.shape[-2] * factor)
        count = len(request.images)
        free = request.size is None and request.image is None and request.layout is None
        if latents.shape[:-2] != (count, channels) or not (free or given == (width, height)):
            needed = (count, channels, height // factor, width // factor)
            raise UserError(f"latents are {tuple(latents.shape)}: {width}x{height} images need {needed}")
        width, height = given
    multiple = factor * pipeline.denoiser.config.multiple
    if min(width, height) < 1 or width % multiple or height % multiple:
        raise UserError(f"size {width}x{height}: width and height must be multiples of {multiple} for this model")
    return channels, height // factor, width // factor


def enlarges(pipeline: Pipeline) -> bool:
    """Return whether the model upscales an image."""
    return "low_resolution" in pipeline.conditionings
