"""Sinusoidal time embeddings, with parameters named as in diffusers' `UNet2DConditionModel`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TimestepEmbedding(nn.Module):
    """Two linear layers with a SiLU between them, and a projection of a condition that is added to their input."""

    def __init__(self, in_channels: int, channels: int, condition_channels: int | None = None) -> None:
        super().__init__()
        if condition_channels is not None:
            self.cond_proj = nn.Linear(condition_channels, in_channels, bias=False)
        self.linear_1 = nn.Linear(in_channels, channels)
        self.linear_2 = nn.Linear(channels, channels)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map x (B, C) and a condition (B, D), if the layer has a projection of it, to (B, channels)."""
        x = x.to(self.linear_1.weight.dtype)
        if condition is not None:
            x = x + self.cond_proj(condition.to(x.dtype))
        return self.linear_2(F.silu(self.linear_1(x)))


def sinusoids(t: Tensor, channels: int, cosines_first: bool = True, freq_shift: float = 0.0) -> Tensor:
    """Return cos and sin of t at wavelengths from 2 pi to 20,000 pi, (B, channels) (Vaswani et al. 2017, section 3.5).

    The longest wavelength is included with a `freq_shift` of 1, and excluded with 0.
    """
    half = channels // 2
    step = -math.log(10_000.0) / (half - freq_shift)
    frequencies = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * step)
    angles = t.float()[:, None] * frequencies  # (B, channels / 2)
    waves = [angles.cos(), angles.sin()]
    return F.pad(torch.cat(waves if cosines_first else waves[::-1], dim=1), (0, channels % 2))
