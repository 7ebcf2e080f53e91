"""Prepared versions of the blocks of a network: the same outputs with fewer passes over memory, without gradients.

All linear layers and convolutions of a prepared block are packed: `layer(h, x)` computes `x + layer(h)` in one pass.
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
    to_map,
    to_tokens,
)
from ldm.models.fast.packed import PackedConv2d, PackedLinear
from ldm.models.layers import NOTHING, DownsampleResBlock, ResNetBlock, Shifts, Size, Upsample, UpsampleResBlock

TOKENS = 16  # keys are padded to a multiple: the fused kernel takes twice as long over 77 of them as over 80
SMALL = 2**18  # values of a bfloat16 map up to which group normalisation is faster in float32
NARROW = 8 * 8  # positions from which it is, and from which on `PreparedUpsample` uses four small convolutions
PRODUCTS = {torch.float32: 0, torch.bfloat16: 2**25}  # positions x channels^2 from which it does, by dtype


class PreparedGroupNorm(nn.GroupNorm):
    """Group normalisation that keeps small bfloat16 maps in float32, where PyTorch's bfloat16 kernel is slow."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, C, H, W); the result may be float32 where x is bfloat16."""
        if x.dtype == torch.bfloat16 and x.numel() <= SMALL and x.shape[2:].numel() >= NARROW:
            weight, bias = (None if part is None else part.float() for part in (self.weight, self.bias))
            return torch.group_norm(x.float(), self.num_groups, weight, bias, self.eps)
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class PreparedResNetBlock(ResNetBlock):
    """Fuses the residual sum into the second convolution and works in place."""

    def forward(self, x: Tensor, shifts: Shifts = NOTHING, size: Size | None = None) -> Tensor:
        """See `ResNetBlock.forward`."""
        shift = next(shifts)
        h = F.silu(self.norm1(x), inplace=True)
        if self.resample is not None:
            x, h = self.resample(x, size), self.resample(h, size)
        h = h.to(x.dtype)
        if shift is None:
            h = self.norm2(self.conv1(h))
        elif self.scale_shift:
            scale, offset = shift[:, :, None, None].chunk(2, dim=1)
            h = self.norm2(self.conv1(h)) * (1 + scale) + offset
        elif len(shift) == 1:  # all images have the same shift, which joins the bias
            h = self.norm2(self.conv1(h, shift=shift[0]))
        else:
            h = self.norm2(self.conv1(h) + shift[:, :, None, None])
        h = F.silu(h, inplace=True).to(x.dtype)
        return self.conv2(h, x if self.conv_shortcut is None else self.conv_shortcut(x))


class PreparedDownsampleResBlock(PreparedResNetBlock, DownsampleResBlock):
    """A prepared ResNet block that halves both sides."""


class PreparedUpsampleResBlock(PreparedResNetBlock, UpsampleResBlock):
    """A prepared ResNet block that doubles both sides."""


class PreparedSelfAttention(Attention):
    """Self-attention that computes queries, keys and values by one product."""

    to_qkv: PackedLinear

    def fuse(self) -> None:
        """Replace the three packed input layers by one."""
        self.to_qkv = PackedLinear.concat([self._modules.pop(name) for name in ("to_q", "to_k", "to_v")])

    def attended(self, tokens: Tensor, projected: KeysValues | None = None) -> Tensor:
        """See `Attention.attended`; there is no context."""
        assert projected is None, "self-attention has no context"
        qkv = self.to_qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(*qkv.unbind()).transpose(1, 2).flatten(2)


class PreparedCrossAttention(Attention):
    """Cross-attention with keys and values in the fused kernel's layout, padded to a multiple of `TOKENS`."""

    def project(self, context: Tensor) -> KeysValues:
        """Project a context (B, L, D) to (B, heads, L', width of a head); the mask is false from position L on."""
        keys, values, _ = super().project(context)
        length, missing = context.shape[1], -context.shape[1] % TOKENS
        if not missing:
            return KeysValues(keys.contiguous(), values.contiguous())
        mask = torch.arange(length + missing, device=context.device) < length
        keys, values = (F.pad(part, (0, 0, 0, missing)) for part in (keys, values))
        return KeysValues(keys, values, mask.view(1, 1, 1, -1))

    def attended(self, tokens: Tensor, projected: KeysValues | None = None) -> Tensor:
        """See `Attention.attended`."""
        assert projected is not None, "cross-attention needs a context"
        queries = self.to_q(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(queries, *projected).transpose(1, 2).flatten(2)


class PreparedSpatialAttention(PreparedSelfAttention, SpatialAttention):
    """Fuses the residual sum into the last linear layer."""

    def forward(self, x: Tensor, projected: object = None) -> Tensor:
        """See `SpatialAttention.forward`."""
        h = self.attended(to_tokens(self.group_norm(x).to(x.dtype)))
        return to_map(self.to_out[0](h, to_tokens(x)), x)


class PreparedFeedForward(FeedForward):
    """Multiplies by the gate while computing the values, and fuses the residual sum into the last linear layer."""

    values: PackedLinear
    gate: PackedLinear

    def fuse(self) -> None:
        """Split the packed first layer into its two halves."""
        self.values, self.gate = self.net[0]._modules.pop("proj").chunk()

    def added(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Add the output for normalised tokens x (B, L, C) to tokens (B, L, C)."""
        return self.net[2](self.values(x, self.gate(x, then="gelu"), "mul"), tokens)


class PreparedTransformerBlock(TransformerBlock):
    """Fuses each residual sum into the linear layer before it."""

    def forward(self, tokens: Tensor, projected: KeysValues) -> Tensor:
        """See `TransformerBlock.forward`."""
        tokens = self.attn1.to_out[0](self.attn1.attended(self.norm1(tokens)), tokens)
        tokens = self.attn2.to_out[0](self.attn2.attended(self.norm2(tokens), projected), tokens)
        return self.ff.added(self.norm3(tokens), tokens)


class PreparedSpatialTransformer(SpatialTransformer):
    """Projects tokens by linear layers, also where the original uses 1x1 convolutions, and fuses the residual sum."""

    def forward(self, x: Tensor, projected: Iterator[KeysValues]) -> Tensor:
        """See `SpatialTransformer.forward`."""
        tokens = self.proj_in(to_tokens(self.norm(x).to(x.dtype)))
        for block in self.transformer_blocks:
            tokens = block(tokens, next(projected))
        return to_map(self.proj_out(tokens, to_tokens(x)), x)


class PreparedUpsample(Upsample):
    """Nearest-neighbour upsampling by 2 and a 3x3 convolution, as four 2x2 convolutions of the small map.

    Each output position sees only 2x2 input positions, so the 3x3 weights for the same input are summed.
    """

    def __init__(self, original: Upsample, exact: Upsample) -> None:
        """Take the layers of `original`; `exact` is the same block before conversion to another dtype."""
        nn.Module.__init__(self)
        self.conv = PackedConv2d(original.conv.weight, original.conv.bias, padding=1)
        self.exact, self.dtype = exact.conv.weight.detach(), original.conv.weight.dtype
        self.places: list[PackedConv2d] = []  # made at the first call that needs them

    def forward(self, x: Tensor, shifts: object = None, size: Size | None = None) -> Tensor:
        """See `Upsample.forward`."""
        batch, channels, height, width = x.shape
        large = height * width >= NARROW and height * width * channels**2 >= PRODUCTS[x.dtype]
        if size not in (None, (2 * height, 2 * width)) or not large:
            return super().forward(x, shifts, size)
        if not self.places:
            self.places = self._make_places()
        shape = batch, len(self.exact), 2 * height, 2 * width
        out = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        for (down, right), place in zip(product((0, 1), repeat=2), self.places, strict=True):
            out[:, :, down::2, right::2] = place(x)[:, :, down : down + height, right : right + width]
        return out

    def _make_places(self) -> list[PackedConv2d]:
        """Make a convolution for each of the four positions; sums of the exact weights are rounded once."""
        # Rows, and columns, of the 3x3 weight that see the same old position.
        rows = ((slice(0, 1), slice(1, 3)), (slice(0, 2), slice(2, 3)))
        weights = (_summed(self.exact, rows[down], rows[right]) for down, right in product((0, 1), repeat=2))
        return [PackedConv2d(weight.to(self.dtype), self.conv.bias, padding=1) for weight in weights]


def _summed(weight: Tensor, rows: tuple[slice, slice], columns: tuple[slice, slice]) -> Tensor:
    """Sum rows and columns of a weight (C', C, 3, 3) in float64: (C', C, 2, 2)."""
    parts = [[weight[:, :, row, column].double().sum((2, 3)) for column in columns] for row in rows]
    return torch.stack([torch.stack(part, dim=-1) for part in parts], dim=-2)
