"""The blocks of a prepared network: those of the original with fewer passes over memory, without gradients.

Every block does with plain layers too: those that cannot be packed stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional as F

from ldm.models.attention import (
    FeedForward,
    KeysValues,
    SpatialAttention,
    SpatialTransformer,
    TransformerBlock,
    to_map,
    to_tokens,
)
from ldm.models.layers import NOTHING, DoublingBlock, HalvingBlock, ResNetBlock, Shifts, Size
from ldm.models.prepared.packed import PackedConv2d, PackedLinear


class PreparedResNetBlock(ResNetBlock):
    """Joins its sum to the second convolution, and overwrites what nobody needs any more."""

    def forward(self, x: Tensor, shifts: Shifts = NOTHING) -> Tensor:
        """As the original."""
        return self._add(x, _activated(self.norm1(x)), next(shifts))

    def _add(self, x: Tensor, h: Tensor, shift: Tensor | None) -> Tensor:
        h = _activated(self._second_norm(self.conv1(h), shift))
        return added(self.conv2, h, x if self.conv_shortcut is None else self.conv_shortcut(x))


class PreparedHalvingBlock(PreparedResNetBlock, HalvingBlock):
    """The same, halving both sides."""

    def forward(self, x: Tensor, shifts: Shifts = NOTHING) -> Tensor:
        """As the original."""
        return HalvingBlock.forward(self, x, shifts)


class PreparedDoublingBlock(PreparedResNetBlock, DoublingBlock):
    """The same, doubling both sides."""

    def forward(self, x: Tensor, shifts: Shifts = NOTHING, size: Size | None = None) -> Tensor:
        """As the original."""
        return DoublingBlock.forward(self, x, shifts, size)


class PreparedSpatialAttention(SpatialAttention):
    """Joins its sum to the last linear layer."""

    def forward(self, x: Tensor, projected: object = None) -> Tensor:
        """As the original."""
        h = self.attended(to_tokens(self.group_norm(x)))
        return to_map(added(self.to_out[0], h, to_tokens(x)), x)


class PreparedFeedForward(FeedForward):
    """Multiplies by its gate in the pass that makes the values, and joins its sum to the last linear layer."""

    def added(self, x: Tensor, tokens: Tensor) -> Tensor:
        """The layer of normalised tokens x (B, L, C) added to tokens (B, L, C)."""
        gate = self.net[0].proj
        return added(self.net[2], gate.multiplied(x) if isinstance(gate, PackedGate) else self.gated(x), tokens)


class PreparedTransformerBlock(TransformerBlock):
    """Joins each sum to the linear layer before it."""

    def forward(self, tokens: Tensor, projected: KeysValues) -> Tensor:
        """As the original."""
        tokens = added(self.attn1.to_out[0], self.attn1.attended(self.norm1(tokens)), tokens)
        tokens = added(self.attn2.to_out[0], self.attn2.attended(self.norm2(tokens), projected), tokens)
        return self.ff.added(self.norm3(tokens), tokens)


class PreparedSpatialTransformer(SpatialTransformer):
    """Projects tokens with linear layers, whichever the original has, and joins the sum to the second."""

    def forward(self, x: Tensor, projected: Iterator[KeysValues]) -> Tensor:
        """As the original."""
        tokens = self.proj_in(to_tokens(self.norm(x)))
        for block in self.transformer_blocks:
            tokens = block(tokens, next(projected))
        return to_map(added(self.proj_out, tokens, to_tokens(x)), x)


class PackedGate(nn.Module):
    """The first layer of a GEGLU in two halves."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        values, gate = layer.weight.chunk(2)
        values_bias, gate_bias = layer.bias.chunk(2)
        self.values, self.gate = PackedLinear(values, values_bias), PackedLinear(gate, gate_bias)

    def multiplied(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L, C) to values times GELU of the gate (B, L, 4C)."""
        return self.values.combined(tokens, self.gate(tokens, "gelu"), "mul")


def added(layer: nn.Module, h: Tensor, x: Tensor) -> Tensor:
    """x + layer(h), in one pass where the layer is packed."""
    if isinstance(layer, PackedLinear):
        return layer.combined(h, x, "add")
    return layer.added(h, x) if isinstance(layer, PackedConv2d) else x + layer(h)


def _activated(h: Tensor) -> Tensor:
    return F.silu(h, inplace=True)
