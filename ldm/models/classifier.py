"""A classifier of noisy latents: the encoder of a U-Net and a head (Dhariwal and Nichol 2021, section 4)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from ldm.config.classifier import ClassifierConfig
from ldm.models.attention import SpatialAttention, attend, to_tokens
from ldm.models.blocks import DownBlock, MakeAttention, MidBlock
from ldm.models.embeddings import TimestepEmbedding, sinusoids
from ldm.models.layers import BlockOptions, Downsample, ResNetBlock


class Classifier(nn.Module):
    """Maps noisy latents and their time to logits of classes, which are all 0 before training."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        widths, channels = config.block_out_channels, 4 * config.block_out_channels[0]
        self.options = BlockOptions(config.norm_num_groups, config.norm_eps, channels, config.dropout, scale_shift=True)
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], channels)
        self.down_blocks = nn.ModuleList(self._down_block(level) for level in range(len(widths)))
        self.mid_block = MidBlock(widths[-1], self.options, self._attention(len(widths) - 1))
        self.norm_out = nn.GroupNorm(config.norm_num_groups, widths[-1], config.norm_eps)
        self.pool = AttentionPool(widths[-1], config.num_attention_heads)
        self.head = nn.Linear(widths[-1], config.num_classes)
        for layer in (*(block.conv2 for block in self._resnets), self.head):
            for weight in layer.parameters():
                nn.init.zeros_(weight)

    def forward(self, latents: Tensor, t: Tensor) -> Tensor:
        """Compute logits (B, K) for noisy latents (B, C, h, w) at times t, (B,) or ()."""
        embedding = F.silu(self.time_embedding(sinusoids(t.reshape(-1).to(latents.device), self._width)))  # (B or 1, E)
        shifts = iter([block.time_emb_proj(embedding) for block in self._resnets])
        h = self.conv_in(latents.to(self.conv_in.weight.dtype))
        for block in self.down_blocks:
            h = block(h, shifts)
        h = F.silu(self.norm_out(self.mid_block(h, shifts)))
        return self.head(self.pool(h))

    def log_probability(self, latents: Tensor, t: Tensor, classes: Tensor) -> Tensor:
        """Compute log p(class | noisy latents), (B,) in float32, for classes (B,)."""
        return -F.cross_entropy(self(latents, t).float(), classes, reduction="none")

    @property
    def _width(self) -> int:
        return self.config.block_out_channels[0]

    @property
    def _resnets(self) -> list[ResNetBlock]:
        return [module for module in self.modules() if isinstance(module, ResNetBlock)]

    def _down_block(self, level: int) -> DownBlock:
        widths = self.config.block_out_channels
        last = level == len(widths) - 1
        return DownBlock(
            widths[max(level - 1, 0)],
            widths[level],
            self.config.layers_per_block,
            self.options,
            self._attention(level),
            None if last else Downsample(widths[level], pad_all_around=True),
        )

    def _attention(self, level: int) -> MakeAttention | None:
        config = self.config
        if level not in config.attention_levels:
            return None
        width = config.block_out_channels[level]
        return partial(SpatialAttention, width, config.norm_num_groups, config.norm_eps, config.num_attention_heads)


class AttentionPool(nn.Module):
    """Attention with the mean of all positions as its query (Radford et al. 2021, section 2.4).

    Without their positional embeddings it takes latents of any size; the padding of convolutions encodes positions.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H, W) to (B, C)."""
        tokens = to_tokens(x)  # (B, HW, C)
        mean = tokens.mean(1, keepdim=True)
        queries, keys, values = (
            layer(given).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, given in ((self.to_q, mean), (self.to_k, tokens), (self.to_v, tokens))
        )
        return self.to_out(attend(queries, keys, values).transpose(1, 2).flatten(1))
