"""Low-resolution images, for super-resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.data.random import StepRandom


def small_images(
    images: Tensor, factor: int, random: StepRandom, step: int, slots: Sequence[int], noise: float = 0.0
) -> Tensor:
    """Reduce images (B, 3, H, W) in [-1, 1] to (B, 3, H / factor, W / factor), with antialiasing.

    Gaussian noise is added with a standard deviation between 0 and `noise`, random for each image (Ho et al. 2022,
    section 4). Unlike there, the network is not conditioned on it, and no noise is added for inference.
    """
    sides = [side // factor for side in images.shape[-2:]]
    small = F.interpolate(images, size=sides, mode="bicubic", antialias=True).clamp(-1, 1)
    if not noise:
        return small
    levels = noise * random.uniform("small_level", step, slots).to(small).view(-1, 1, 1, 1)
    return torch.addcmul(small, levels, random.normal("small_noise", step, slots, small.shape[1:]).to(small))
