"""What is added to the U-Net's time embedding, and the time embedding itself.

Parameters are named as in diffusers' `UNet2DConditionModel`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.models.unet.config import UNetConfig


class Added(NamedTuple):
    """What SDXL adds to the time embedding (Podell et al. 2023, section 2.2)."""

    text: Tensor  # pooled text, (B, P)
    sizes: Tensor  # (B, 6): original height and width, top and left of the crop, target height and width, in pixels


class TimestepEmbedding(nn.Module):
    """Two linear layers with a SiLU between them."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, channels)
        self.linear_2 = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C) to (B, channels)."""
        return self.linear_2(F.silu(self.linear_1(x.to(self.linear_1.weight.dtype))))


def sinusoids(t: Tensor, channels: int, cosines_first: bool = True, freq_shift: float = 0.0) -> Tensor:
    """cos and sin of t at wavelengths from 2 pi to 20,000 pi, (B, channels) (Vaswani et al. 2017, section 3.5).

    With a `freq_shift` of 1 the longest wavelength is reached, with 0 it would be the next.
    """
    half = channels // 2
    step = -math.log(10_000.0) / (half - freq_shift)
    frequencies = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * step)
    angles = t.float()[:, None] * frequencies  # (B, channels / 2)
    waves = [angles.cos(), angles.sin()]
    return F.pad(torch.cat(waves if cosines_first else waves[::-1], dim=1), (0, channels % 2))


def class_embedding(config: UNetConfig, channels: int) -> nn.Module | None:
    """What makes an embedding (B, channels) of the classes; None where the U-Net knows no classes."""
    if config.num_class_embeds is not None:
        return nn.Embedding(config.num_class_embeds, channels)
    given = config.projection_class_embeddings_input_dim or 0
    match config.class_embed_type:
        case "timestep":
            return TimestepEmbedding(config.block_out_channels[0], channels)
        case "projection":
            return TimestepEmbedding(given, channels)
        case "simple_projection":
            return nn.Linear(given, channels)
        case "identity":
            return nn.Identity()
    return None
