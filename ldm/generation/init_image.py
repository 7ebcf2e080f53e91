"""An image that is given: to start from, or to keep a part of."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guidance import keeping
from ldm.diffusion.level import Grid
from ldm.models import tiling
from ldm.models.autoencoder.autoencoder import Autoencoder


class InitImage:
    """An image in latents and, where only a part of it is to be drawn anew, that part."""

    def __init__(
        self,
        image: Image.Image,
        mask: Image.Image | None,
        size: tuple[int, int],
        scaled: bool,
        autoencoder: Autoencoder,
        device: torch.device,
        tile: int | None = None,
        from_noise: bool = False,
    ) -> None:
        """Encode the image to the posterior's mode, scaled or else only cut to `size`, width and height in pixels.

        `tile` as in `ldm.models.tiling`. With `from_noise` sampling starts without it, even where the first level still
        has some of the image.
        """
        self.from_noise = from_noise
        self.image = fitted(image.convert("RGB"), size, scaled)
        self.mask = None if mask is None else fitted(mask.convert("L"), size, scaled)
        with torch.inference_mode():
            posterior = tiling.encode(autoencoder, pixels_of(self.image, device), tile)
            self.latents = posterior.mode().float()  # (1, C, h, w)
        if self.mask is not None:
            # Latents that see any redrawn pixel are drawn anew.
            redrawn = mask_of(self.mask, device)
            self.redrawn = F.max_pool2d(redrawn, autoencoder.config.downsampling_factor)  # (1, 1, h, w)

    def noisy(self, grid: Grid, noise: Tensor) -> Tensor:
        """Where sampling starts: the latents at the grid's first level with this noise (B, C, h, w)."""
        if self.from_noise:
            return grid.initial_scale * noise
        return grid.levels[0].noisy(self.latents.expand_as(noise), noise)

    def keep(self, denoiser: Denoiser) -> Denoiser:
        """A denoiser that sees the image wherever it is not drawn anew."""
        return denoiser if self.mask is None else keeping(denoiser, self.latents, self.redrawn)

    def restore(self, image: Image.Image) -> Image.Image:
        """The drawn image with the given pixels where they stay."""
        return image if self.mask is None else Image.composite(image, self.image, self.mask)


class InpaintImage(InitImage):
    """An image of which a model fills a part that it was trained to fill: nothing is replaced while it does."""

    def keep(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser as it is: its input has the image already."""
        return denoiser


def pixels_of(image: Image.Image, device: torch.device) -> Tensor:
    """An image's numbers (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].to(device).float() / 127.5 - 1


def mask_of(mask: Image.Image, device: torch.device) -> Tensor:
    """A mask's numbers (1, 1, H, W): 1 where it is white, 0 where it is black."""
    return (torch.from_numpy(np.array(mask))[None, None] > 127).to(device).float()


def fitted(
    image: Image.Image, size: tuple[int, int], scaled: bool, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """An image of `size`, width and height in pixels: scaled to cover it, or else only cut."""
    return cover(image, size, resample) if scaled else cut(image, size)


def cover(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """Scale an image until it just covers width and height in pixels, and cut away what is too much."""
    scale = max(wanted / given for wanted, given in zip(size, image.size, strict=True))
    width, height = (max(wanted, round(given * scale)) for wanted, given in zip(size, image.size, strict=True))
    return cut(image.resize((width, height), resample), size)


def cut(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of an image, width and height in pixels."""
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))
