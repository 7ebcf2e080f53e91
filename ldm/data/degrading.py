"""Small images made of large ones, for super-resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.data.random import StepRandom


def small_images(
    images: Tensor, factor: int, draws: StepRandom, step: int, slots: Sequence[int], noise: float = 0.0
) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] as (B, 3, H / factor, W / factor), resized with antialiasing.

    Each gets Gaussian noise of a standard deviation drawn between 0 and `noise` (Ho et al. 2022, section 4, where the
    network is told the level; here it is not, and an image that is to be enlarged is given as it is).
    """
    sides = [side // factor for side in images.shape[-2:]]
    small = F.interpolate(images, size=sides, mode="bicubic", antialias=True).clamp(-1, 1)
    if not noise:
        return small
    levels = noise * draws.uniform("small_level", step, slots).to(small).view(-1, 1, 1, 1)
    return torch.addcmul(small, levels, draws.normal("small_noise", step, slots, small.shape[1:]).to(small))
