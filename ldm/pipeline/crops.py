"""Parts of a picture that CLIP is shown, so that all of it is judged, near and far (Crowson 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 0.5  # side of the smallest crop, as a share of the picture's shorter side


class Crops:
    """Random squares of the pictures of a batch, each picture's from its own seed, anew at every call."""

    def __init__(self, seeds: Sequence[int], count: int, side: int) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.count, self.side = count, side

    def __call__(self, pictures: Tensor) -> Tensor:
        """Crops (B, count, 3, side, side) of pictures (B, 3, H, W): the largest square first, then random ones."""
        return torch.stack([self._of_one(*pair) for pair in zip(pictures, self.generators, strict=True)])

    def _of_one(self, picture: Tensor, generator: torch.Generator) -> Tensor:
        draws = torch.rand(self.count - 1, 3, generator=generator).tolist()
        return torch.cat([self._crop(picture, 1.0, 0.5, 0.5), *(self._crop(picture, *draw) for draw in draws)])

    def _crop(self, picture: Tensor, size: float, across: float, down: float) -> Tensor:
        """A square (1, 3, side, side) of a picture (3, H, W), its size and place given as numbers from 0 to 1."""
        height, width = picture.shape[1:]
        length = round((SMALLEST + (1 - SMALLEST) * size) * min(height, width))
        top, left = round(down * (height - length)), round(across * (width - length))
        part = picture[None, :, top : top + length, left : left + length]
        return F.interpolate(part, (self.side, self.side), mode="bicubic", antialias=True, align_corners=False)
