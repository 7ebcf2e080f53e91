"""Crops of an image for CLIP guidance, which together show all of it, near and far (Crowson 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 0.5  # side of the smallest crop, as a share of the image's shorter side


class Crops:
    """Random square crops of the images of a batch, each image's from its own seed, new ones at every call."""

    def __init__(self, seeds: Sequence[int], count: int, side: int) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.count, self.side = count, side

    def __call__(self, images: Tensor) -> Tensor:
        """Crop images (B, 3, H, W) to (B, count, 3, side, side): the largest square first, then random ones."""
        return torch.stack([self._of_one(*pair) for pair in zip(images, self.generators, strict=True)])

    def _of_one(self, image: Tensor, generator: torch.Generator) -> Tensor:
        places = torch.rand(self.count - 1, 3, generator=generator).tolist()
        return torch.cat([self._crop(image, 1.0, 0.5, 0.5), *(self._crop(image, *place) for place in places)])

    def _crop(self, image: Tensor, size: float, across: float, down: float) -> Tensor:
        """Crop a square (1, 3, side, side) of an image (3, H, W); size and place are given as numbers from 0 to 1."""
        height, width = image.shape[1:]
        length = round((SMALLEST + (1 - SMALLEST) * size) * min(height, width))
        top, left = round(down * (height - length)), round(across * (width - length))
        part = image[None, :, top : top + length, left : left + length]
        return F.interpolate(part, (self.side, self.side), mode="bicubic", antialias=True, align_corners=False)
