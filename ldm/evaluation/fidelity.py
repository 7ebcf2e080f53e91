"""Similarity of reconstructions and images, one value per image."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.evaluation.optional import import_optional

PSNR_LIMIT = 100.0
SSIM_BORDER = 5  # half of the window of 11 pixels
SSIM_PIXELS = 2**20  # compared at a time, which bounds memory for large images

Metric = Callable[[Tensor, Tensor], Tensor]  # bytes (B, 3, H, W), bytes (B, 3, H, W) -> (B,)


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of bytes in dB, (B,); at most 100, so that equal images keep means finite."""
    error = (images.double() - references.double()).square().flatten(1).mean(1)
    return (10 * torch.log10(255**2 / error)).clamp(max=PSNR_LIMIT)


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Structural similarity with a Gaussian window of sigma 1.5 (Wang et al. 2004), with torchmetrics, (B,).

    The mean is over windows inside the image, as in scikit-image and the original.
    """
    height, width = images.shape[-2:]
    if min(height, width) < 2 * SSIM_BORDER + 1:
        raise UserError(f"SSIM needs images of at least {2 * SSIM_BORDER + 1} pixels a side, not {width}x{height}")
    measure = import_optional("torchmetrics.functional.image", "SSIM metrics").structural_similarity_index_measure
    options = {"reduction": "none", "data_range": 255.0, "return_full_image": True}
    inside, rows = slice(SSIM_BORDER, -SSIM_BORDER), max(1, SSIM_PIXELS // width)
    count, parts = images[0, :, inside, inside].numel(), []
    for top in range(0, height - 2 * SSIM_BORDER, rows):
        band = slice(top, top + rows + 2 * SSIM_BORDER)
        _, whole = measure(images[..., band, :].float(), references[..., band, :].float(), **options)
        parts.append(whole[..., inside, inside].flatten(1).sum(1) / count)
    return torch.stack(parts).sum(0)


def lpips(net: str = "vgg") -> Metric:
    """Load LPIPS (Zhang et al. 2018): smaller is more similar."""
    from ldm.models.perceptual import PerceptualDistance

    distance = PerceptualDistance(net)

    def measure(images: Tensor, references: Tensor) -> Tensor:
        with torch.inference_mode():
            return distance.to(images.device)(images / 127.5 - 1, references / 127.5 - 1)

    return measure


def metrics(names: Iterable[str]) -> dict[str, Metric]:
    """Return the metrics of these names: psnr, ssim, lpips."""
    loaders: dict[str, Callable[[], Metric]] = {"psnr": lambda: psnr, "ssim": lambda: ssim, "lpips": lpips}
    names = tuple(names)
    if unknown := [name for name in names if name not in loaders]:
        raise UserError(f"no metric {unknown[0]!r}: choose from {', '.join(loaders)}")
    return {name: loaders[name]() for name in names}
