"""Levels of the autoencoder and the U-Net: ResNet blocks, optional attention after each, and resampling.

The U-Net passes two iterators to its blocks: `shifts`, one projected time embedding per ResNet block, and `projected`,
keys and values of the context for each cross-attention. Blocks take their items in running order. The autoencoder
passes neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn

from ldm.models.attention import KeysValues
from ldm.models.layers import (
    NOTHING,
    BlockOptions,
    Downsample,
    DownsampleResBlock,
    ResNetBlock,
    Shifts,
    Upsample,
    UpsampleResBlock,
)

MakeAttention = Callable[[], nn.Module]
Projected = Iterator[KeysValues | None]


class DownBlock(nn.Module):
    """ResNet blocks of one level in the encoder; `downsample` halves the sides at the end."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layers: int,
        options: BlockOptions,
        attention: MakeAttention | None = None,
        downsample: Downsample | DownsampleResBlock | None = None,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (layers - 1)
        self.resnets = nn.ModuleList(ResNetBlock(width, out_channels, options) for width in widths)
        self.attentions = nn.ModuleList(attention() for _ in range(layers) if attention)
        self.downsamplers = nn.ModuleList([downsample] if downsample else [])

    def forward(
        self, x: Tensor, shifts: Shifts = NOTHING, projected: Projected = NOTHING, skips: list[Tensor] | None = None
    ) -> Tensor:
        """Map x (B, C, H, W) to (B, C', H / 2, W / 2) or (B, C', H, W); append all intermediate results to `skips`."""
        made = []
        for resnet, attention in zip_longest(self.resnets, self.attentions):
            x = resnet(x, shifts)
            x = attention(x, projected) if attention else x
            made.append(x)
        for downsample in self.downsamplers:
            x = downsample(x, shifts)
            made.append(x)
        if skips is not None:
            skips.extend(made)
        return x


class MidBlock(nn.Module):
    """Two ResNet blocks at the coarsest level, with optional attention between them."""

    def __init__(self, channels: int, options: BlockOptions, attention: MakeAttention | None = None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResNetBlock(channels, channels, options) for _ in range(2))
        self.attentions = nn.ModuleList([attention()] if attention else [])

    def forward(self, x: Tensor, shifts: Shifts = NOTHING, projected: Projected = NOTHING) -> Tensor:
        """Map x (B, C, H, W) to the same shape."""
        x = self.resnets[0](x, shifts)
        for attention in self.attentions:
            x = attention(x, projected)
        return self.resnets[1](x, shifts)


class UpBlock(nn.Module):
    """ResNet blocks of one level in the decoder; `upsample` doubles the sides at the end.

    `skip_channels` are the widths of the skip connections concatenated to the input of each ResNet block; 0: none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        skip_channels: Sequence[int],
        options: BlockOptions,
        attention: MakeAttention | None = None,
        upsample: Upsample | UpsampleResBlock | None = None,
    ) -> None:
        super().__init__()
        layers = len(skip_channels)
        widths = [in_channels] + [out_channels] * (layers - 1)
        self.resnets = nn.ModuleList(
            ResNetBlock(width + skip, out_channels, options) for width, skip in zip(widths, skip_channels, strict=True)
        )
        self.attentions = nn.ModuleList(attention() for _ in range(layers) if attention)
        self.upsamplers = nn.ModuleList([upsample] if upsample else [])

    def forward(
        self,
        x: Tensor,
        shifts: Shifts = NOTHING,
        projected: Projected = NOTHING,
        skips: list[Tensor] | None = None,
    ) -> Tensor:
        """Map x (B, C, H, W) to (B, C', 2H, 2W) or (B, C', H, W); each ResNet block pops one of `skips`."""
        for resnet, attention in zip_longest(self.resnets, self.attentions):
            if skips is not None:
                x = torch.cat([x, skips.pop()], dim=1)
            x = resnet(x, shifts)
            x = attention(x, projected) if attention else x
        for upsample in self.upsamplers:
            x = upsample(x, shifts, size=tuple(skips[-1].shape[2:]) if skips else None)
        return x
