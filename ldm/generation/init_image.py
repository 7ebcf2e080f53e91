"""Input images: to start from, and to keep in part."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ldm.checkpoint.pipeline import Pipeline
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guidance import keeping
from ldm.diffusion.level import Grid
from ldm.generation.request import Request
from ldm.models import tiling
from ldm.models.autoencoder.autoencoder import Autoencoder


class InitImage:
    """An image to start sampling from and, with a mask, the part of it to regenerate."""

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
        """Encode an image to the mode of its posterior.

        Args:
            mask: of mode L, white where to regenerate the image.
            size: width and height in pixels to which the image is cropped.
            scaled: scale the image to cover `size` before.
            tile: as in `ldm.models.tiling`.
            from_noise: start from pure noise, even where the first level still contains some signal.
        """
        self.from_noise = from_noise
        self.image = fitted(image.convert("RGB"), size, scaled)
        self.mask = None if mask is None else fitted(mask, size, scaled)
        with torch.inference_mode():
            posterior = tiling.encode(autoencoder, pixels_of(self.image, device), tile)
            self.latents = posterior.mode().float()  # (1, C, h, w)
        if self.mask is not None:  # latents that see any regenerated pixel are regenerated
            pixels = mask_of(self.mask, device)
            self.regenerated = F.max_pool2d(pixels, autoencoder.config.downsampling_factor)  # (1, 1, h, w)

    def noisy(self, grid: Grid, noise: Tensor) -> Tensor:
        """Return the latents at the grid's first level with noise (B, C, h, w)."""
        if self.from_noise:
            return grid.initial_scale * noise
        return grid.levels[0].noisy(self.latents.expand_as(noise), noise)

    def keep(self, denoiser: Denoiser) -> Denoiser:
        """Return a denoiser that keeps the image where it is not regenerated."""
        return denoiser if self.mask is None else keeping(denoiser, self.latents, self.regenerated)

    def restore(self, image: Image.Image) -> Image.Image:
        """Return a generated image with the input's pixels where they are kept."""
        return image if self.mask is None else Image.composite(image, self.image, self.mask)


class InpaintImage(InitImage):
    """An image for an inpainting model, which sees it in its input channels."""

    def keep(self, denoiser: Denoiser) -> Denoiser:
        """Return the denoiser itself: nothing is replaced while sampling."""
        return denoiser


def make_init_image(
    request: Request, pipeline: Pipeline, autoencoder: Autoencoder, size: tuple[int, int], tile: int | None
) -> InitImage | None:
    """Encode the image that sampling starts from; None if the model only takes it as a condition."""
    if request.image is None or not all(each.starts_from_image for each in pipeline.conditionings.values()):
        return None
    given = request.image, request.mask, size, request.size is not None, autoencoder, pipeline.device, tile
    if "inpainting" in pipeline.conditionings:
        return InpaintImage(*given, from_noise=request.strength == 1)
    return InitImage(*given)


def pixels_of(image: Image.Image, device: torch.device) -> Tensor:
    """Convert an image to pixels (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].to(device).float() / 127.5 - 1


def mask_of(mask: Image.Image, device: torch.device) -> Tensor:
    """Convert a mask to values (1, 1, H, W): 1 where it is white, 0 where it is black."""
    return (torch.from_numpy(np.array(mask))[None, None] > 127).to(device).float()


def fitted(
    image: Image.Image, size: tuple[int, int], scaled: bool, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """Crop an image to `size`, width and height in pixels, if `scaled` after scaling it to cover that."""
    return cover(image, size, resample) if scaled else cut(image, size)


def cover(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """Scale an image to just cover `size`, width and height in pixels, and crop the rest."""
    scale = max(wanted / given for wanted, given in zip(size, image.size, strict=True))
    width, height = (max(wanted, round(given * scale)) for wanted, given in zip(size, image.size, strict=True))
    return cut(image.resize((width, height), resample), size)


def cut(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Crop the centre of an image to `size`, width and height in pixels."""
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image.crop((left, top, left + size[0], top + size[1]))
