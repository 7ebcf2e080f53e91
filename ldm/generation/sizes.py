"""How large images and their latents are."""

from __future__ import annotations

from torch import Tensor

from ldm.checkpoint.parts import Parts
from ldm.errors import UserError
from ldm.generation.request import Request


def image_size(parts: Parts, request: Request) -> tuple[int, int]:
    """Width and height in pixels of the images of a request; those of an image are cut to what can be drawn."""
    if request.size is not None:
        return request.size
    factor = parts.autoencoder.config.downsampling_factor
    given = request.image or request.layout
    if given is None:
        side = parts.unet.config.sample_size * factor
        return side, side
    multiple, scale = factor * parts.unet.config.multiple, factor if enlarges(parts) else 1
    width, height = (side * scale // multiple * multiple for side in given.size)
    if not width or not height:
        least = multiple // scale
        raise UserError(f"the image is smaller than {least} pixels, the least that this model can take")
    return width, height


def latent_shape(parts: Parts, request: Request, latents: Tensor | None = None) -> tuple[int, int, int]:
    """(C, h, w) of one image's latents; UserError for a size that the networks cannot halve as they do."""
    channels, factor = parts.autoencoder.config.latent_channels, parts.autoencoder.config.downsampling_factor
    width, height = image_size(parts, request)
    if latents is not None:
        given = (latents.shape[-1] * factor, latents.shape[-2] * factor)
        count = len(request.images)
        free = request.size is None and request.image is None and request.layout is None
        if latents.shape[:-2] != (count, channels) or not (free or given == (width, height)):
            needed = (count, channels, height // factor, width // factor)
            raise UserError(f"latents are {tuple(latents.shape)}: {width}x{height} images need {needed}")
        width, height = given
    multiple = factor * parts.unet.config.multiple
    if min(width, height) < 1 or width % multiple or height % multiple:
        raise UserError(f"size {width}x{height}: width and height must be multiples of {multiple} for this model")
    return channels, height // factor, width // factor


def enlarges(parts: Parts) -> bool:
    """Whether the model draws from a small image a larger one."""
    return parts.spatial is not None and parts.spatial.config.kind == "low_resolution"
