"""Linear layers and convolutions with weights packed for oneDNN, for inference on a CPU.

A plain layer converts its weights to oneDNN's layout at each call, which takes as long as the product itself in the
coarse levels of a U-Net. A packed layer converts them once, at its first call, when the input's size is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.models.fast import winograd

NO_GRADIENTS = "a network prepared for sampling computes no gradients: call the network that it was made from"


class PackedLinear(nn.Module):
    """A linear layer that fuses an activation, a sum or a product with its result."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take a weight (C', C) and a bias (C',)."""
        super().__init__()
        self.plain: Tensor | None = weight.detach()  # until it is packed
        self.bias = None if bias is None else bias.detach()
        self.packed: Tensor | None = None

    @classmethod
    def concat(cls, layers: Sequence[PackedLinear]) -> PackedLinear:
        """Concatenate the outputs of layers that have the same input and have not been called yet."""
        weights = [layer.plain for layer in layers if layer.plain is not None]
        if all(layer.bias is None for layer in layers):
            return cls(torch.cat(weights), None)
        pairs = zip(weights, (layer.bias for layer in layers), strict=True)
        biases = [weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in pairs]
        return cls(torch.cat(weights), torch.cat(biases))

    def chunk(self) -> tuple[PackedLinear, PackedLinear]:
        """Split the outputs of a layer that has not been called yet into two halves."""
        assert self.plain is not None, "the layer was called before"
        weights, biases = self.plain.chunk(2), (None, None) if self.bias is None else self.bias.chunk(2)
        return PackedLinear(weights[0], biases[0]), PackedLinear(weights[1], biases[1])

    def forward(self, x: Tensor, other: Tensor | None = None, then: str | None = None) -> Tensor:
        """Map x (..., C) to (..., C').

        Args:
            other: (..., C'), combined with the result: "add", the default, or "mul" by `then`.
            then: without `other`, an activation: "gelu" or None.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(NO_GRADIENTS)
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.plain, x.shape[:-1].numel())
            self.plain = None
        if other is None:
            return torch.ops.mkldnn._linear_pointwise.default(x, self.packed, self.bias, then or "none", [], "none")
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, self.bias, then or "add")


class PackedConv2d(nn.Module):
    """A convolution of channels-last feature maps that fuses a sum with its result."""

    def __init__(self, weight: Tensor, bias: Tensor | None, padding: int = 0, stride: int = 1) -> None:
        """Take a weight (C', C, k, k) and a bias (C',); zeros of width `padding` surround the input."""
        super().__init__()
        self.plain: Tensor | None = weight.detach()  # until it is packed
        self.bias = None if bias is None else bias.detach()
        self.packed: Tensor | None = None
        self.sizes = [padding, padding], [stride, stride], [1, 1], 1  # dilation and groups
        fits = (*weight.shape[2:], padding, stride) == (3, 3, 1, 1)
        self.winograd_positions = winograd.least_positions(weight) if fits else math.inf
        self.weight = None if self.winograd_positions == math.inf else self.plain

    def forward(self, x: Tensor, other: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Convolve x (B, C, H, W) to (B, C', H', W'), plus `other` of that shape and a shift (C',)."""
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(NO_GRADIENTS)
        x, other, bias = channels_last(x), None if other is None else channels_last(other), self.bias
        if shift is not None:
            bias = shift if bias is None else bias + shift
        if x.shape[2] * x.shape[3] >= self.winograd_positions:  # whatever the batch size
            return winograd.convolve(x, self.weight, bias, other)
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(self.plain, *self.sizes, list(x.shape))
            self.plain = None
        convolve = torch.ops.mkldnn._convolution_pointwise
        if other is None:
            return convolve.default(x, self.packed, bias, *self.sizes, "none", [], "none")
        return convolve.binary(x, other, self.packed, bias, *self.sizes, "add", 1.0, None, [], None)


def channels_last(x: Tensor) -> Tensor:
    """Convert x (B, C, H, W) to channels-last layout."""
    return x.contiguous(memory_format=torch.channels_last)


@cache
def works(dtype: torch.dtype) -> bool:
    """Return whether packed layers, which call private functions of PyTorch, work for a dtype."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    bound = 1e-5 if dtype == torch.float32 else 1e-2
    try:
        with torch.no_grad():
            pairs = [*_linear_results(dtype), *_convolution_results(dtype)]
    except (AttributeError, RuntimeError, TypeError):
        return False
    return all((found.float() - plain).norm() < bound * plain.norm() for found, plain in pairs)


def _linear_results(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Return results of a packed layer, each with the result of a plain one."""
    weight, bias, x, other = _numbers(dtype, (24, 16), (24,), (2, 5, 16), (2, 5, 24))
    layer, plain = PackedLinear(weight, bias), F.linear(x.float(), weight.float(), bias.float())
    return [
        (layer(x), plain),
        (layer(x, then="gelu"), F.gelu(plain)),
        (layer(x, other), plain + other.float()),
        (layer(x, other, "mul"), plain * other.float()),
    ]


def _convolution_results(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    weight, bias, x, other = _numbers(dtype, (24, 16, 3, 3), (24,), (2, 16, 6, 6), (2, 24, 6, 6))
    layer, plain = PackedConv2d(weight, bias, padding=1), F.conv2d(x.float(), weight.float(), bias.float(), padding=1)
    return [(layer(x), plain), (layer(x, other), plain + other.float())]


def _numbers(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
