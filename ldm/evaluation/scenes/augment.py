"""Augmentation of the probe's training images, which covers the defects of generated images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MOST_SHIFT = 4  # pixels
MOST_BLUR = 1.3  # largest standard deviation, pixels
MOST_NOISE = 0.05  # standard deviation, for images in [0, 1]
MOST_CONTRAST, MOST_BRIGHTNESS = 0.12, 0.05
BLUR_GROUPS = 4  # of images in a batch with the same blur


def augment(images: Tensor, things: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Augment images (B, 3, H, W) in [0, 1] and rows of objects (B, 6, 6)."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    turned = things.clone()
    turned[..., 2], turned[..., 4] = 1 - things[..., 4], 1 - things[..., 2]
    things = torch.where(mirrored[:, None, None], turned, things)
    images, things = _shift(images, things, generator)
    images = _blur(images, generator)
    one = (len(images), 1, 1, 1)
    contrast = 1 + MOST_CONTRAST * (2 * torch.rand(one, generator=generator) - 1)
    brightness = MOST_BRIGHTNESS * (2 * torch.rand(one, generator=generator) - 1)
    noise = MOST_NOISE * torch.rand(one, generator=generator) * torch.randn(images.shape, generator=generator)
    return ((images - 0.5) * contrast + 0.5 + brightness + noise).clamp(0, 1), things


def _shift(images: Tensor, things: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shift all images by the same pixels; edges are replicated."""
    down, right = torch.randint(-MOST_SHIFT, MOST_SHIFT + 1, (2,), generator=generator).tolist()
    height, width = images.shape[2:]
    padded = F.pad(images, (MOST_SHIFT,) * 4, mode="replicate")
    top, left = MOST_SHIFT - down, MOST_SHIFT - right
    moved = things.clone()
    moved[..., 2:] += torch.tensor([right / width, down / height] * 2)
    return padded[:, :, top : top + height, left : left + width], moved


def _blur(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur each quarter of the batch with a random width, except the first one."""
    groups = list(images.chunk(BLUR_GROUPS))
    for number in range(1, len(groups)):
        deviation = 0.2 + (MOST_BLUR - 0.2) * float(torch.rand((), generator=generator))
        reach = torch.arange(-4.0, 5.0)
        kernel = torch.exp(-(reach**2) / (2 * deviation**2))
        kernel = (kernel / kernel.sum()).view(1, 1, 1, -1).repeat(3, 1, 1, 1)
        sides = F.pad(groups[number], (4, 4, 4, 4), mode="replicate")
        groups[number] = F.conv2d(F.conv2d(sides, kernel, groups=3), kernel.transpose(2, 3), groups=3)
    return torch.cat(groups)
