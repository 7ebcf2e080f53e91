"""A picture that is given: to start from, or to keep a part of."""

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
from ldm.models.autoencoder import Autoencoder


class Given:
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
    ) -> None:
        """Encode the image to the posterior's mode, scaled or else only cut to `size`, width and height in pixels.

        `tile` as in `ldm.models.tiling`.
        """
        fit = cover if scaled else cut
        self.image = fit(image.convert("RGB"), size)
        self.mask = None if mask is None else fit(mask.convert("L"), size)
        pixels = torch.from_numpy(np.array(self.image)).permute(2, 0, 1)[None].to(device)
        with torch.inference_mode():
            posterior = tiling.encode(autoencoder, pixels.float() / 127.5 - 1, tile)
            self.latents = posterior.mode().float()  # (1, C, h, w)
        if self.mask is not None:
            redrawn = torch.from_numpy(np.array(self.mask)).to(device)[None, None] > 127
            # Latents that see any redrawn pixel are drawn anew.
            self.redrawn = F.max_pool2d(redrawn.float(), autoencoder.config.downsampling_factor)  # (1, 1, h, w)

    def noisy(self, grid: Grid, noise: Tensor) -> Tensor:
        """Where sampling starts: the latents at the grid's first level with this noise (B, C, h, w)."""
        return grid.levels[0].noisy(self.latents.expand_as(noise), noise)

    def keep(self, denoiser: Denoiser) -> Denoiser:
        """A denoiser that sees the image wherever it is not drawn anew."""
        return denoiser if self.mask is None else keeping(denoiser, self.latents, self.redrawn)

    def restore(self, image: Image.Image) -> Image.Image:
        """The drawn picture with the given pixels where they stay."""
        return image if self.mask is None else Image.composite(image, self.image, self.mask)


def cover(
    image: Image.Image, size: tuple[int, int], resampling: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """Scale a picture until it just covers width and height in pixels, and cut away what is too much."""
    scale = max(wanted / given for wanted, given in zip(size, image.size, strict=True))
    width, height = (max(wanted, round(given * scale)) for wanted, given in zip(size, image.size, strict=True))
    return cut(image.resize((width, height), resampling), size)


def cut(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of a picture, width and height in pixels."""
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))
