"""Images that join the U-Net's input: a map of classes, what is left of an image to be filled, a small image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.checkpoint.parts import Parts
from ldm.conditioning.spatial import Spatial, SpatialConfig, hidden, inpainting_channels, one_hot
from ldm.errors import UserError
from ldm.generation.init_image import fitted, mask_of, pixels_of
from ldm.generation.request import Request
from ldm.models import tiling


class SpatialInput(Protocol):
    """How the images of a request become channels beside the latents; `size` is width and height in pixels."""

    def resolve(self, request: Request) -> Request:
        """The request with what it leaves open; raises UserError where it asks for what the model does not know."""

    def __call__(self, request: Request, size: tuple[int, int]) -> Tensor | None:
        """The channels (1, C, h, w), the same for all images of a resolved request."""


def make_spatial_input(parts: Parts, tile: int | None = None) -> SpatialInput:
    """That of a model of maps, of holes to fill, of small images, or of none of them; `tile` as in `tiling`."""
    if parts.spatial is None:
        return NoSpatialInput()
    kinds: dict[str, Callable[[Parts, Spatial], SpatialInput]] = {
        "segmentation_map": LayoutInput,
        "low_resolution": LowResolutionInput,
    }
    kinds |= {"inpainting": partial(InpaintingInput, tile=tile)}
    return kinds[parts.spatial.config.kind](parts, parts.spatial)


class NoSpatialInput:
    """A U-Net that sees latents alone."""

    def resolve(self, request: Request) -> Request:
        """No layout can be followed."""
        _refuse_layout(request)
        return request

    def __call__(self, request: Request, size: tuple[int, int]) -> Tensor | None:
        """Nothing."""
        return None


class LayoutInput:
    """A map of classes, through the model's own segmentation_map."""

    def __init__(self, parts: Parts, spatial: Spatial) -> None:
        self.parts, self.spatial, self.config = parts, spatial, spatial.config

    def resolve(self, request: Request) -> Request:
        """There must be a layout, of classes that the model has."""
        layout = request.layout
        if layout is None:
            raise UserError(f"this model draws from a layout: give one (--layout), a PNG of {_classes(self.config)}")
        if layout.mode not in ("L", "P"):
            raise UserError(
                f"the layout is a picture of mode {layout.mode}: give a PNG of class numbers, in grey or with a palette"
            )
        if (highest := int(np.asarray(layout).max())) >= self.config.in_channels:
            raise UserError(f"the layout has class {highest}: this model has {_classes(self.config)}")
        return request

    def __call__(self, request: Request, size: tuple[int, int]) -> Tensor:
        """One channel a class, made as small as the latents."""
        assert request.layout is not None  # `resolve` saw to it
        layout = fitted(request.layout, size, request.size is not None, Image.Resampling.NEAREST)
        classes = torch.from_numpy(np.array(layout)).to(self.parts.device)[None]  # (1, H, W)
        weights = next(self.spatial.parameters())
        return self.spatial(one_hot(classes, self.config.in_channels).to(weights)).float()


class InpaintingInput:
    """A mask, and the latents of the image without what the mask hides."""

    def __init__(self, parts: Parts, spatial: Spatial, tile: int | None) -> None:
        self.parts, self.spatial, self.tile = parts, spatial, tile

    def resolve(self, request: Request) -> Request:
        """There must be an image and a mask."""
        _refuse_layout(request)
        if request.image is None or request.mask is None:
            raise UserError("this model fills what a mask hides of an image: give both (--image and --mask)")
        return request

    def __call__(self, request: Request, size: tuple[int, int]) -> Tensor:
        """In the order of Stable Diffusion's inpainting models."""
        assert request.image is not None  # `resolve` saw to these two
        assert request.mask is not None
        scaled, device = request.size is not None, self.parts.device
        masks = mask_of(fitted(request.mask.convert("L"), size, scaled), device)
        pixels = pixels_of(fitted(request.image.convert("RGB"), size, scaled), device)
        latents = tiling.encode(self.parts.autoencoder, hidden(pixels, masks), self.tile).mode().float()
        return self.spatial(inpainting_channels(masks, latents))


class LowResolutionInput:
    """An image with as many pixels as there are latents."""

    def __init__(self, parts: Parts, spatial: Spatial) -> None:
        self.parts, self.spatial = parts, spatial

    def resolve(self, request: Request) -> Request:
        """There must be an image, which is not what sampling starts from."""
        _refuse_layout(request)
        if request.image is None:
            raise UserError("this model makes a small image larger: give one (--image)")
        if request.mask is not None or request.strength not in (None, 1):
            raise UserError("this model makes an image larger, all of it: leave mask and strength out")
        return replace(request, strength=1.0)

    def __call__(self, request: Request, size: tuple[int, int]) -> Tensor:
        """The pixels as they are; `size` is that of the large image."""
        assert request.image is not None  # `resolve` saw to it
        factor = self.parts.autoencoder.config.downsampling_factor
        small = size[0] // factor, size[1] // factor
        image = fitted(request.image.convert("RGB"), small, request.size is not None)
        return self.spatial(pixels_of(image, self.parts.device))


def _refuse_layout(request: Request) -> None:
    if request.layout is not None:
        raise UserError("this model was not trained on maps of classes: leave the layout out")


def _classes(config: SpatialConfig) -> str:
    names = ": " + ", ".join(f"{number} {name}" for number, name in enumerate(config.names)) if config.names else ""
    return f"the classes 0 to {config.in_channels - 1}{names}"
