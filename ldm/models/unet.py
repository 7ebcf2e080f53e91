"""The denoising U-Net with cross-attention to a context (Rombach et al. 2022, section 3.3 and appendix E.2).

Parameters are named as in diffusers' `UNet2DConditionModel`.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.config import UNetConfig
from ldm.models.attention import Attention, KeysValues, SpatialTransformer, TransformerBlock
from ldm.models.blocks import DownBlock, MakeAttention, MidBlock, UpBlock
from ldm.models.layers import BlockOptions, Downsample, ResNetBlock, Upsample


class TimeEmbedding(nn.Module):
    """Two linear layers over sinusoids of the time step."""

    def __init__(self, frequencies: int, channels: int) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.linear_1 = nn.Linear(frequencies, channels)
        self.linear_2 = nn.Linear(channels, channels)

    def forward(self, t: Tensor) -> Tensor:
        """Time steps (B,) to (B, channels)."""
        waves = sinusoids(t, self.frequencies).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(waves)))


def sinusoids(t: Tensor, channels: int) -> Tensor:
    """cos and sin of t at wavelengths from 2 pi to 20,000 pi, (B, channels) (Vaswani et al. 2017, section 3.5)."""
    half = channels // 2
    frequencies = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(10_000.0) / half))
    angles = t.float()[:, None] * frequencies  # (B, channels / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class UNet(nn.Module):
    """Regresses the prediction target from noisy latents, their time step and a context.

    Levels whose `attention_layers` is 0 have ResNet blocks alone. The mid block always attends, with at least one
    transformer block, because that of `UNet2DConditionModel` does.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        self.options = BlockOptions(config.norm_num_groups, 1e-5, 4 * widths[0], config.dropout)
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], 4 * widths[0])
        self.down_blocks = nn.ModuleList(self._down_block(level) for level in range(len(widths)))
        self.mid_block = MidBlock(widths[-1], self.options, self._attention(-1, max(1, config.attention_layers[-1])))
        skips = self.skip_channels
        self.up_blocks = nn.ModuleList(self._up_block(level, skips) for level in reversed(range(len(widths))))
        self.conv_norm_out = nn.GroupNorm(self.options.groups, widths[0], self.options.eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)
        self.shift_channels = [block.conv1.out_channels for block in self._resnets]
        self._start_at_zero()

    @property
    def skip_channels(self) -> list[int]:
        """Widths of the skips in the order in which they are made: after `conv_in`, each layer, each halving."""
        widths, layers = self.config.block_out_channels, self.config.layers_per_block
        halved = [True] * (len(widths) - 1) + [False]
        made = [[width] * (layers + half) for width, half in zip(widths, halved, strict=True)]
        return [widths[0], *chain.from_iterable(made)]

    def forward(self, latents: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Output (B, C', h, w) for noisy latents (B, C, h, w), time steps t (B,) and a context (B, L, D)."""
        return self.denoise(latents, self.embed_time(t), self.project_context(context))

    def embed_time(self, t: Tensor) -> Tensor:
        """What every ResNet block adds at time steps t (B,), side by side: (B, sum of their widths)."""
        embedding = F.silu(self.time_embedding(t))  # (B, 4 C0)
        return torch.cat([block.time_emb_proj(embedding) for block in self._resnets], dim=1)

    def project_context(self, context: Tensor) -> list[KeysValues]:
        """Keys and values of a context (B, L, D) for every cross-attention, in the order in which they run."""
        context = context.to(self.dtype)
        return [attention.project(context) for attention in self._cross_attentions]

    def denoise(self, latents: Tensor, embedding: Tensor, projected: list[KeysValues]) -> Tensor:
        """`forward` with its constants made before: `embed_time` (B or 1, E) and `project_context`."""
        shifts = iter(embedding.split(self.shift_channels, dim=1))
        keys_values = iter(projected)
        h = self.conv_in(latents.to(self.dtype))
        skips = [h]
        for down_block in self.down_blocks:
            h = down_block(h, shifts, keys_values, skips)
        h = self.mid_block(h, shifts, keys_values)
        for up_block in self.up_blocks:
            h = up_block(h, shifts, keys_values, skips)
        return self.conv_out(F.silu(self.conv_norm_out(h)))

    @property
    def dtype(self) -> torch.dtype:
        """The type its weights have, and latents and contexts are converted to."""
        return self.conv_in.weight.dtype

    @property
    def _resnets(self) -> list[ResNetBlock]:
        """In the order in which they run, since blocks are registered in that order."""
        return [module for module in self.modules() if isinstance(module, ResNetBlock)]

    @property
    def _cross_attentions(self) -> list[Attention]:
        return [module.attn2 for module in self.modules() if isinstance(module, TransformerBlock)]

    def _down_block(self, level: int) -> DownBlock:
        widths = self.config.block_out_channels
        width, last = widths[level], level == len(widths) - 1
        return DownBlock(
            widths[max(level - 1, 0)],
            width,
            self.config.layers_per_block,
            self.options,
            self._attention(level, self.config.attention_layers[level]),
            None if last else Downsample(width, pad_all_around=True),
        )

    def _up_block(self, level: int, skips: list[int]) -> UpBlock:
        widths = self.config.block_out_channels
        width = widths[level]
        return UpBlock(
            widths[min(level + 1, len(widths) - 1)],
            width,
            [skips.pop() for _ in range(self.config.layers_per_block + 1)],
            self.options,
            self._attention(level, self.config.attention_layers[level]),
            Upsample(width) if level > 0 else None,
        )

    def _attention(self, level: int, layers: int) -> MakeAttention | None:
        if layers == 0:
            return None
        config = self.config
        return partial(
            SpatialTransformer,
            config.block_out_channels[level],
            config.heads[level],
            config.cross_attention_dim or 0,
            layers,
            config.norm_num_groups,
            config.use_linear_projection,
        )

    def _start_at_zero(self) -> None:
        """Make every residual branch, and the output, zero at first (Ho et al. 2020; Goyal et al. 2017, 5.1)."""
        last_layers: list[nn.Module] = [block.conv2 for block in self._resnets]
        last_layers += [module.proj_out for module in self.modules() if isinstance(module, SpatialTransformer)]
        for layer in [*last_layers, self.conv_out]:
            for weight in layer.parameters():
                nn.init.zeros_(weight)
