"""Attention over tokens and over the positions of feature maps (Vaswani et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.models.precision import full_precision

MANY_SCORES = 2**14  # of one head of one sample


class KeysValues(NamedTuple):
    """Keys and values of one attention, each (B, heads, L, head width); `mask` (1, 1, 1, L) is false at padding."""

    keys: Tensor
    values: Tensor
    mask: Tensor | None = None


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute softmax(Q K^T / sqrt(d)) V (Vaswani et al. 2017, equation 1) over (B, heads, L, d).

    `mask`, broadcast to (B, heads, L, L'), is true where a query may attend.
    """
    if _trains_in_bfloat16(queries):
        return _attend_in_training(queries, keys, values, mask)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)


def _trains_in_bfloat16(tokens: Tensor) -> bool:
    return torch.is_grad_enabled() and tokens.device.type == "cpu" and torch.is_autocast_enabled("cpu")


def _attend_in_training(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attend in bfloat16 training on a CPU, where the backward pass of the fused bfloat16 kernel is slow.

    The fused float32 kernel is fastest for many scores, which it never writes to memory; plain products are fastest
    for few scores, which stay in the caches.
    """
    if queries.shape[-2] * keys.shape[-2] >= MANY_SCORES:
        with full_precision(queries.device):
            wide = queries.float(), keys.float(), values.float()
            return F.scaled_dot_product_attention(*wide, attn_mask=mask).to(queries.dtype)
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)  # (B, heads, L, L')
    scores = scores if mask is None else scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ values


class Attention(nn.Module):
    """Multi-head attention, to itself or to a context of another width."""

    def __init__(self, channels: int, heads: int, context_channels: int | None = None, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias)
        self.to_k = nn.Linear(context_channels or channels, channels, bias)
        self.to_v = nn.Linear(context_channels or channels, channels, bias)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def project(self, context: Tensor) -> KeysValues:
        """Compute keys and values of a context (B, L, D)."""
        return KeysValues(self._split_heads(self.to_k(context)), self._split_heads(self.to_v(context)))

    def forward(self, tokens: Tensor, projected: KeysValues | None = None) -> Tensor:
        """Map tokens (B, L, C) to (B, L, C), attending to `projected`, or to themselves."""
        return self.to_out[0](self.attended(tokens, projected))

    def attended(self, tokens: Tensor, projected: KeysValues | None = None) -> Tensor:
        """Attend with tokens (B, L, C), without the last linear layer; (B, L, C)."""
        h = attend(
            self._split_heads(self.to_q(tokens)), *(projected or self.project(tokens))
        )  # (B, heads, L, C / heads)
        return h.transpose(1, 2).flatten(2)

    def _split_heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class SpatialAttention(Attention):
    """x + self-attention over the positions of a feature map (Ho et al. 2020, appendix B)."""

    def __init__(self, channels: int, groups: int, eps: float, heads: int = 1) -> None:
        super().__init__(channels, heads, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps)

    def forward(self, x: Tensor, projected: object = None) -> Tensor:
        """Map x (B, C, H, W) to the same shape; `projected` is ignored, since there is no context."""
        return x + to_map(super().forward(to_tokens(self.group_norm(x))), x)


class FeedForward(nn.Module):
    """Two linear layers with a gated GELU between them, GEGLU (Shazeer 2020, equation 6)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        gate = nn.Module()
        gate.proj = nn.Linear(channels, 8 * channels)
        # The identity takes the place of diffusers' dropout, so that the keys have the same numbers.
        self.net = nn.ModuleList([gate, nn.Identity(), nn.Linear(4 * channels, channels)])

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, L, C) to the same shape."""
        proj = self.net[0].proj
        if _trains_in_bfloat16(tokens):  # two products, whose gradients need not be concatenated
            halves = zip(proj.weight.chunk(2), proj.bias.chunk(2), strict=True)
            values, gate = (F.linear(tokens, weight, bias) for weight, bias in halves)  # (B, L, 4C) each
        else:
            values, gate = proj(tokens).chunk(2, dim=-1)
        return self.net[2](values * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and a feed-forward layer, each with a LayerNorm before and a residual sum."""

    def __init__(self, channels: int, heads: int, context_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, context_channels)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, tokens: Tensor, projected: KeysValues) -> Tensor:
        """Map tokens (B, L, C) to the same shape; `projected` are keys and values of the context."""
        tokens = tokens + self.attn1(self.norm1(tokens))
        tokens = tokens + self.attn2(self.norm2(tokens), projected)
        return tokens + self.ff(self.norm3(tokens))


class SpatialTransformer(nn.Module):
    """x + transformer blocks over the positions of a feature map (Rombach et al. 2022, appendix E.2.1).

    `linear` projects with linear layers instead of 1x1 convolutions: the same numbers in other shapes.
    """

    def __init__(
        self, channels: int, heads: int, context_channels: int, layers: int, groups: int, linear: bool
    ) -> None:
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, heads, context_channels) for _ in range(layers)
        )
        self.proj_out = nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, projected: Iterator[KeysValues]) -> Tensor:
        """Map x (B, C, H, W) to the same shape; each block takes the next keys and values from `projected`."""
        h = self.norm(x)
        tokens = self.proj_in(to_tokens(h)) if self.linear else to_tokens(self.proj_in(h))  # (B, HW, C)
        for block in self.transformer_blocks:
            tokens = block(tokens, next(projected))
        h = to_map(self.proj_out(tokens), x) if self.linear else self.proj_out(to_map(tokens, x))
        return x + h


def to_tokens(x: Tensor) -> Tensor:
    """Reshape a feature map (B, C, H, W) to tokens (B, HW, C), row by row."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, like: Tensor) -> Tensor:
    """Reshape tokens (B, HW, C) to a feature map (B, C, H, W) with the sides of `like`."""
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])
