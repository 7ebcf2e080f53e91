"""The blocks of a prepared network: those of the original with fewer passes over memory, without gradients.

A block is replaced as a whole, its layers with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.models.attention import (
    Attention,
    FeedForward,
    KeysValues,
    SpatialAttention,
    SpatialTransformer,
    TransformerBlock,
    attend,
    to_map,
    to_tokens,
)
from ldm.models.fast.packed import PackedConv2d, PackedLinear
from ldm.models.layers import DownsampleResBlock, ResNetBlock, Size, Upsample, UpsampleResBlock

TOKENS = 16  # of keys: the fused kernel takes twice as long over 77 as over 80
SMALL = 2**18  # numbers of a map in bfloat16 up to which float32 is the faster way through a group norm
NARROW = 8 * 8  # positions from which on it is, and from which on four small convolutions take the place of a large one
PRODUCTS = {torch.float32: 0, torch.bfloat16: 2**25}  # positions times squared channels from which on they do, too


class PreparedGroupNorm(nn.GroupNorm):
    """Leaves small maps in bfloat16, which PyTorch's kernel is slow with, in the float32 that it normalises them in."""

    def forward(self, x: Tensor) -> Tensor:
        """As the original, (B, C, H, W), but in some cases not rounded to the type of x."""
        if x.dtype == torch.bfloat16 and x.numel() <= SMALL and x.shape[2:].numel() >= NARROW:
            weight, bias = (None if part is None else part.float() for part in (self.weight, self.bias))
            return torch.group_norm(x.float(), self.num_groups, weight, bias, self.eps)
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class PreparedResNetBlock(ResNetBlock):
    """Joins its sum to the second convolution, and overwrites what nobody needs any more."""

    def shifted(self, x: Tensor, shift: Tensor | None) -> Tensor:
        """As the original."""
        return self._add(x, activated(self.norm1, x), shift)

    def _add(self, x: Tensor, h: Tensor, shift: Tensor | None) -> Tensor:
        h = h.to(x.dtype)
        if self.scale_shift:
            h = F.silu(self._second_norm(self.conv1(h), shift), inplace=True).to(x.dtype)
        else:
            h = activated(self.norm2, _moved(self.conv1, h, shift))
        return added(self.conv2, h, x if self.conv_shortcut is None else self.conv_shortcut(x))


class PreparedHalvingBlock(PreparedResNetBlock, DownsampleResBlock):
    """The same, halving both sides."""

    def shifted(self, x: Tensor, shift: Tensor | None) -> Tensor:
        """As the original."""
        return DownsampleResBlock.shifted(self, x, shift)


class PreparedDoublingBlock(PreparedResNetBlock, UpsampleResBlock):
    """The same, doubling both sides."""

    def shifted(self, x: Tensor, shift: Tensor | None, size: Size | None = None) -> Tensor:
        """As the original."""
        return UpsampleResBlock.shifted(self, x, shift, size)


class PreparedSelfAttention(Attention):
    """Attention of tokens to themselves, whose queries, keys and values are one product."""

    to_qkv: PackedLinear

    def join(self) -> None:
        """Make one layer of three packed ones."""
        self.to_qkv = PackedLinear.joined([self._modules.pop(name) for name in ("to_q", "to_k", "to_v")])

    def attended(self, tokens: Tensor, projected: KeysValues | None = None) -> Tensor:
        """As the original, without a context."""
        assert projected is None, "this attention is to its own tokens"
        joined = self.to_qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return attend(*joined.unbind()).transpose(1, 2).flatten(2)


class PreparedCrossAttention(Attention):
    """Keeps keys and values as the fused kernel likes them: each head on its own, in multiples of sixteen tokens."""

    def project(self, context: Tensor) -> KeysValues:
        """As the original, (B, heads, L', width of a head), where a mask is false from the context's length L on."""
        keys, values, _ = super().project(context)
        length, missing = context.shape[1], -context.shape[1] % TOKENS
        if not missing:
            return KeysValues(keys.contiguous(), values.contiguous())
        mask = torch.arange(length + missing, device=context.device) < length
        keys, values = (F.pad(part, (0, 0, 0, missing)) for part in (keys, values))
        return KeysValues(keys, values, mask.view(1, 1, 1, -1))


class PreparedSpatialAttention(PreparedSelfAttention, SpatialAttention):
    """Joins its sum to the last linear layer."""

    def forward(self, x: Tensor, projected: object = None) -> Tensor:
        """As the original."""
        h = self.attended(to_tokens(normalised(self.group_norm, x)))
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
        tokens = self.proj_in(to_tokens(normalised(self.norm, x)))
        for block in self.transformer_blocks:
            tokens = block(tokens, next(projected))
        return to_map(added(self.proj_out, tokens, to_tokens(x)), x)


class PreparedUpsample(Upsample):
    """Convolves before it repeats: each of a doubled position's four places sees 2x2 old ones, with sums of weights."""

    def __init__(self, original: Upsample, exact: Upsample) -> None:
        """Take over a block whose layers are plain; `exact` is the same before it was converted to another type."""
        nn.Module.__init__(self)
        self.conv = PackedConv2d(original.conv.weight, original.conv.bias, padding=1)
        self.exact, self.dtype = exact.conv.weight.detach(), original.conv.weight.dtype
        self.places: list[PackedConv2d] = []  # made when they are needed

    def _places(self) -> list[PackedConv2d]:
        """Convolutions for the four places, by sums of the exact weights that are rounded once."""
        if not self.places:
            rows = {
                0: (slice(0, 1), slice(1, 3)),
                1: (slice(0, 2), slice(2, 3)),
            }  # of the weight that fall on one place
            for down, right in product((0, 1), repeat=2):
                weight = _summed(self.exact, rows[down], rows[right]).to(self.dtype)
                self.places.append(PackedConv2d(weight, self.conv.bias, padding=1))
        return self.places

    def _pays(self, x: Tensor) -> bool:
        positions = x.shape[2] * x.shape[3]
        return positions >= NARROW and positions * x.shape[1] ** 2 >= PRODUCTS[x.dtype]

    def forward(self, x: Tensor, shifts: object = None, size: Size | None = None) -> Tensor:
        """As the original."""
        height, width = x.shape[2:]
        if size not in (None, (2 * height, 2 * width)) or not self._pays(x):
            return super().forward(x, shifts, size)
        out: Tensor | None = None
        for (down, right), place in zip(product((0, 1), repeat=2), self._places(), strict=True):
            found = place(x)[:, :, down : down + height, right : right + width]
            if out is None:
                shape = len(x), found.shape[1], 2 * height, 2 * width
                out = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
            out[:, :, down::2, right::2] = found
        assert out is not None
        return out


def _summed(weight: Tensor, rows: tuple[slice, slice], columns: tuple[slice, slice]) -> Tensor:
    """A weight (C', C, 3, 3) with some rows and columns added up, (C', C, 2, 2), in float64."""
    parts = [[weight[:, :, row, column].double().sum((2, 3)) for column in columns] for row in rows]
    return torch.stack([torch.stack(part, dim=-1) for part in parts], dim=-2)


class PackedGate(nn.Module):
    """The first layer of a GEGLU in two halves."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        values, gate = layer.weight.chunk(2)
        values_bias, gate_bias = (None, None) if layer.bias is None else layer.bias.chunk(2)
        self.values, self.gate = PackedLinear(values, values_bias), PackedLinear(gate, gate_bias)

    def multiplied(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L, C) to values times GELU of the gate (B, L, 4C)."""
        return self.values.combined(tokens, self.gate(tokens, "gelu"), "mul")


def added(layer: nn.Module, h: Tensor, x: Tensor) -> Tensor:
    """x + layer(h), in one pass where the layer is packed."""
    if isinstance(layer, PackedLinear):
        return layer.combined(h, x, "add")
    return layer.added(h, x) if isinstance(layer, PackedConv2d) else x + layer(h)


def activated(norm: nn.Module, x: Tensor) -> Tensor:
    """SiLU of normalised x (B, C, H, W)."""
    return F.silu(norm(x), inplace=True).to(x.dtype)


def normalised(norm: nn.Module, x: Tensor) -> Tensor:
    """What a group norm gives for x (B, C, H, W), in the type of x."""
    return norm(x).to(x.dtype)


def _moved(conv: nn.Module, x: Tensor, shift: Tensor | None) -> Tensor:
    """conv(x) plus a shift (B or 1, C), which joins the bias where all maps have the same."""
    if shift is None:
        return conv(x)
    if len(shift) == 1 and isinstance(conv, PackedConv2d):
        return conv(x, shift[0])
    return conv(x) + shift[:, :, None, None]
