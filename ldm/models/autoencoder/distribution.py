"""Distributions of latents that an encoder returns, and the scaling that gives latents unit variance."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.precision import at_least_float32


class LatentDistribution:
    """Distribution of z given an image; this one has all its mass at one point, so every sample is the mode."""

    mean: Tensor  # of z, (B, C, h, w), at least float32

    def __init__(self, moments: Tensor, config: AutoencoderConfig) -> None:
        self.moments = moments  # (B, M * C, h, w), as returned by the encoder
        self.config = config
        self.mean = at_least_float32(moments)

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """Return latents (B, C, h, w) for standard normal noise, which is sampled from `generator` if not given."""
        return self.mode()

    def mode(self) -> Tensor:
        """Return the most likely latents (B, C, h, w)."""
        return scale(self.mean, self.config)

    @property
    def variance(self) -> Tensor:
        """Variance of z, (B, C, h, w)."""
        return torch.zeros_like(self.mean)


def scale(z: Tensor, config: AutoencoderConfig) -> Tensor:
    """Return latents (z - shift_factor) * scaling_factor; unmeasured statistics leave z as it is."""
    return (z - _per_channel(config.shift_factor, 0.0, z)) * _per_channel(config.scaling_factor, 1.0, z)


def unscale(latents: Tensor, config: AutoencoderConfig) -> Tensor:
    """Return z, the inverse of `scale`."""
    return latents / _per_channel(config.scaling_factor, 1.0, latents) + _per_channel(config.shift_factor, 0.0, latents)


def _per_channel(value: float | tuple[float, ...] | None, unmeasured: float, like: Tensor) -> float | Tensor:
    if value is None:
        return unmeasured
    if not isinstance(value, tuple):
        return value
    row = torch.tensor(value, dtype=like.dtype).to(like.device, non_blocking=True)  # too small to need pinned memory
    return row.view(1, -1, 1, 1)
