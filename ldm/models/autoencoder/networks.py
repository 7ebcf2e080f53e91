"""Convolutional encoder and decoder (Rombach et al. 2022, section 3.1), with diffusers' parameter names."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from ldm.models.attention import SpatialAttention
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.blocks import DownBlock, MakeAttention, MidBlock, UpBlock
from ldm.models.layers import BlockOptions, Downsample, Upsample


class Encoder(nn.Module):
    """Encode images to the input of `quant_conv`, which yields the moments of z."""

    def __init__(self, config: AutoencoderConfig, out_channels: int) -> None:
        super().__init__()
        options = BlockOptions(config.norm_num_groups, eps=1e-6)
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, (before, width) in enumerate(zip(widths[:1] + widths[:-1], widths, strict=True)):
            downsample = Downsample(width, pad_all_around=False) if level < len(widths) - 1 else None
            attention = _attention(width, options) if level in config.attention_levels else None
            self.down_blocks.append(DownBlock(before, width, config.layers_per_block, options, attention, downsample))
        self.mid_block = _mid_block(config, options)
        self.conv_norm_out = nn.GroupNorm(options.groups, widths[-1], options.eps)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to (B, M * Z, H / f, W / f), M values for each of Z channels."""
        h = self.conv_in(images)
        for block in self.down_blocks:
            h = block(h)
        h = self.mid_block(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


class Decoder(nn.Module):
    """Decode the output of `post_quant_conv` to images."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        options = BlockOptions(config.norm_num_groups, eps=1e-6)
        widths = config.block_out_channels[::-1]
        self.conv_in = nn.Conv2d(config.z_width, widths[0], 3, padding=1)
        self.mid_block = _mid_block(config, options)
        self.up_blocks = nn.ModuleList()
        no_skips = [0] * (config.layers_per_block + 1)
        for level, (before, width) in enumerate(zip(widths[:1] + widths[:-1], widths, strict=True)):
            upsample = Upsample(width) if level < len(widths) - 1 else None
            attention = _attention(width, options) if len(widths) - 1 - level in config.attention_levels else None
            self.up_blocks.append(UpBlock(before, width, no_skips, options, attention, upsample))
        self.conv_norm_out = nn.GroupNorm(options.groups, widths[-1], options.eps)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Map (B, Z, h, w) to images (B, 3, fh, fw)."""
        h = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            h = block(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


def _mid_block(config: AutoencoderConfig, options: BlockOptions) -> MidBlock:
    channels = config.block_out_channels[-1]
    return MidBlock(channels, options, _attention(channels, options) if config.mid_block_attention else None)


def _attention(channels: int, options: BlockOptions) -> MakeAttention:
    return partial(SpatialAttention, channels, options.groups, options.eps)
