"""Scale and crop images to a size, and turn them into tensors."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

LANCZOS = Image.Resampling.LANCZOS


def pixels_of(image: Image.Image, device: torch.device) -> Tensor:
    """Convert an RGB image to a tensor (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].to(device).float() / 127.5 - 1


def mask_of(mask: Image.Image, device: torch.device) -> Tensor:
    """Convert a grey mask to a tensor (1, 1, H, W): 1 where it is white, 0 where it is black."""
    return (torch.from_numpy(np.array(mask))[None, None] > 127).to(device).float()


def fit_to(
    image: Image.Image, size: tuple[int, int], scaled: bool, resample: Image.Resampling = LANCZOS
) -> Image.Image:
    """Bring an image to `size`, width and height in pixels: scaled until it covers it, or else only cropped."""
    return cover(image, size, resample) if scaled else crop_centre(image, size)


def cover(image: Image.Image, size: tuple[int, int], resample: Image.Resampling = LANCZOS) -> Image.Image:
    """Scale an image until it just covers width and height in pixels, then crop its centre."""
    scale = max(wanted / given for wanted, given in zip(size, image.size, strict=True))
    width, height = (max(wanted, round(given * scale)) for wanted, given in zip(size, image.size, strict=True))
    return crop_centre(image.resize((width, height), resample), size)


def crop_centre(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Crop the centre of an image to width and height in pixels."""
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))
