"""Attention over tokens and over the positions of feature maps (Vaswani et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.models.precision import full_precision

MANY_SCORES = 2**14  # of one head of one sample


class KeysValues(NamedTuple):
    """Keys and values of one attention, each (B, heads, L, width of a head).

    `mask` (1, 1, 1, L) is false where they only fill up, if they do.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None = None


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V (Vaswani et al. 2017, equation 1) over (B, heads, L, d).

    `mask`, broadcast to (B, heads, L, L'), is true where a query may look.
    """
    if _trains_in_bfloat16(queries):
        return _attend_in_training(queries, keys, values, mask)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)


def _trains_in_bfloat16(tokens: Tensor) -> bool:
    return torch.is_grad_enabled() and tokens.device.type == "cpu" and torch.is_autocast_enabled("cpu")


def _attend_in_training(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """`attend` for training in bfloat16 on a CPU, where the fused kernel's backward pass in that type is slow.

    Many scores are best never written to memory: the fused kernel in float32. Few of them stay in the caches, and
    plain products are the fastest.
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
        """Keys and values of a context (B, L, D)."""
        return KeysValues(self._divide(self.to_k(context)), self._divide(self.to_v(context)))

    def forward(self, tokens: Tensor, projected: KeysValues | None = None) -> Tensor:
        """Tokens (B, L, C) to (B, L, C), attending to `projected`, or to themselves."""
        return self.to_out[0](self.attended(tokens, projected))

    def attended(self, tokens: Tensor, projected: KeysValues | None = None) -> Tensor:
        """What tokens (B, L, C) see, before the last linear layer, (B, L, C)."""
        h = attend(self._divide(self.to_q(tokens)), *(projected or self.project(tokens)))  # (B, heads, L, C / heads)
        return h.transpose(1, 2).flatten(2)

    def _divide(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class SpatialAttention(Attention):
    """x + self-attention over the positions of a feature map (Ho et al. 2020, appendix B)."""

    def __init__(self, channels: int, groups: int, eps: float, heads: int = 1) -> None:
        super().__init__(channels, heads, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps)

    def forward(self, x: Tensor, projected: object = None) -> Tensor:
        """x (B, C, H, W) to the same shape; there is no context to attend to, whatever `projected` holds."""
        return x + to_map(super().forward(to_tokens(self.group_norm(x))), x)


class FeedForward(nn.Module):
    """Two linear layers with a gated GELU between them, GEGLU (Shazeer 2020, equation 6)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        gate = nn.Module()
        gate.proj = nn.Linear(channels, 8 * channels)
        # Where diffusers keeps a dropout between the two, an identity keeps the numbers in the keys.
        self.net = nn.ModuleList([gate, nn.Identity(), nn.Linear(4 * channels, channels)])

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L, C) to the same shape."""
        return self.net[2](self.gated(tokens))

    def gated(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L, C) to what lies between the two layers, (B, L, 4C)."""
        values, gate = self._halves(tokens)  # (B, L, 4C) each
        return values * F.gelu(gate)

    def _halves(self, tokens: Tensor) -> Sequence[Tensor]:
        proj = self.net[0].proj
        if not _trains_in_bfloat16(tokens):
            return proj(tokens).chunk(2, dim=-1)
        # By two products, whose gradients need not be joined again.
        halves = zip(proj.weight.chunk(2), proj.bias.chunk(2), strict=True)
        return [F.linear(tokens, weight, bias) for weight, bias in halves]


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and a feed-forward layer, each on normalised tokens and added to them."""

    def __init__(self, channels: int, heads: int, context_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, context_channels)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, tokens: Tensor, projected: KeysValues) -> Tensor:
        """Tokens (B, L, C) to the same shape; `projected` are the context's keys and values."""
        tokens = tokens + self.attn1(self.norm1(tokens))
        tokens = tokens + self.attn2(self.norm2(tokens), projected)
        return tokens + self.ff(self.norm3(tokens))


class SpatialTransformer(nn.Module):
    """x + transformer blocks over the positions of a feature map (Rombach et al. 2022, appendix E.2.1).

    `linear` projects tokens with linear layers instead of 1x1 convolutions: the same numbers in other shapes.
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
        """x (B, C, H, W) to the same shape; takes the keys and values of its own blocks from `projected`."""
        h = self.norm(x)
        tokens = self.proj_in(to_tokens(h)) if self.linear else to_tokens(self.proj_in(h))  # (B, HW, C)
        for block in self.transformer_blocks:
            tokens = block(tokens, next(projected))
        h = to_map(self.proj_out(tokens), x) if self.linear else self.proj_out(to_map(tokens, x))
        return x + h


def to_tokens(x: Tensor) -> Tensor:
    """A feature map (B, C, H, W) as tokens (B, HW, C), row by row."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, like: Tensor) -> Tensor:
    """Tokens (B, HW, C) as a feature map (B, C, H, W) with the sides of `like`."""
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])
