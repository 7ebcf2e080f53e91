"""How near reconstructions come to their images, one number an image."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ldm.errors import UserError, install_extra

PSNR_LIMIT = 100.0
SSIM_BORDER = 5  # half of its window of 11 pixels
SSIM_PIXELS = 2**20  # compared at a time, so that memory stays bounded whatever the image's size

Metric = Callable[[Tensor, Tensor], Tensor]  # bytes (B, 3, H, W), bytes (B, 3, H, W) -> (B,)


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of bytes in dB, (B,); at most 100, which equal images have.

    Their own would be infinite, and so would any mean that they enter.
    """
    error = (images.double() - references.double()).square().flatten(1).mean(1)
    return (10 * torch.log10(255**2 / error)).clamp(max=PSNR_LIMIT)


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Structural similarity with a Gaussian window of sigma 1.5 (Wang et al. 2004), through torchmetrics, (B,).

    The mean is over windows that lie in the image altogether, as in scikit-image and the original.
    """
    height, width = images.shape[-2:]
    if min(height, width) < 2 * SSIM_BORDER + 1:
        raise UserError(f"SSIM compares windows of {2 * SSIM_BORDER + 1} pixels: an image is smaller than that")
    measure = _functional().structural_similarity_index_measure
    options = {"reduction": "none", "data_range": 255.0, "return_full_image": True}
    inside, rows = slice(SSIM_BORDER, -SSIM_BORDER), max(1, SSIM_PIXELS // width)
    count, parts = images[0, :, inside, inside].numel(), []
    for top in range(0, height - 2 * SSIM_BORDER, rows):
        band = slice(top, top + rows + 2 * SSIM_BORDER)
        _, whole = measure(images[..., band, :].float(), references[..., band, :].float(), **options)
        parts.append(whole[..., inside, inside].flatten(1).sum(1) / count)
    return torch.stack(parts).sum(0)


def lpips(net: str = "vgg") -> Metric:
    """LPIPS (Zhang et al. 2018), smaller is nearer; UserError where the backbone's weights cannot be had."""
    from ldm.models.perceptual import PerceptualDistance

    distance = PerceptualDistance(net)

    def measure(images: Tensor, references: Tensor) -> Tensor:
        with torch.inference_mode():
            return distance.to(images.device)(images / 127.5 - 1, references / 127.5 - 1)

    return measure


def metrics(names: Iterable[str]) -> dict[str, Metric]:
    """The measures of these names: psnr, ssim, lpips; UserError for others."""
    makers: dict[str, Callable[[], Metric]] = {"psnr": lambda: psnr, "ssim": lambda: ssim, "lpips": lpips}
    found = {}
    for name in names:
        if name not in makers:
            raise UserError(f"no measure {name!r}: there are {', '.join(makers)}")
        found[name] = makers[name]()
    return found


def _functional() -> Any:
    try:
        from torchmetrics.functional import image
    except ImportError as error:
        raise UserError(f"SSIM needs torchmetrics: {install_extra('eval')}") from error
    return image
