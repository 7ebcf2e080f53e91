"""What a model's configuration changes in the predictions of its denoiser, after guidance: clipping and variance."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.config.diffusion import ClippingConfig, DiffusionConfig
from ldm.diffusion.denoiser import Denoised, Denoiser
from ldm.diffusion.level import Grid, Level, per_sample
from ldm.diffusion.posterior import Posteriors


def configured(denoiser: Denoiser, config: DiffusionConfig, grid: Grid) -> Denoiser:
    """Clip predicted images and set the large variance of a grid's steps, if the configuration has these options."""
    posteriors = Posteriors(grid) if config.variance == "large" else None
    if posteriors is None and config.clipping is None:
        return denoiser

    def denoise(x: Tensor, level: Level) -> Denoised:
        denoised = denoiser(x, level)
        if config.clipping is not None:
            denoised = denoised._replace(x0=clip(denoised.x0, config.clipping), unclipped=denoised.x0)
        return denoised if posteriors is None else denoised._replace(log_variance=posteriors.at(level).large)

    return denoise


def clip(x0: Tensor, config: ClippingConfig) -> Tensor:
    """Clip images (B, ...) to the limit, or by dynamic thresholding (Saharia et al. 2022, section 2.3)."""
    if config.quantile is None:
        return x0.clamp(-config.limit, config.limit)
    size = torch.quantile(x0.abs().flatten(1), config.quantile, dim=1).clamp(min=1).clamp(max=config.limit)
    size = per_sample(size, x0)  # (B, 1, ...)
    return x0.clamp(-size, size) / size
