"""Linear layers and convolutions whose weights oneDNN has laid out beforehand, for inference on a CPU.

A plain layer has its weights laid out anew at each call, which in the coarse levels of a U-Net takes as long as the
product itself. Here that is done at the first call, when the size of the input is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.models.fast import winograd


class PackedLinear(nn.Module):
    """A linear layer; what is done to its result is done in the same pass."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take over a weight (C', C) and a bias (C',)."""
        super().__init__()
        self.plain: Tensor | None = weight.detach()  # until it is packed
        self.bias = None if bias is None else bias.detach()
        self.packed: Tensor | None = None

    @classmethod
    def joined(cls, layers: Sequence[PackedLinear]) -> PackedLinear:
        """Layers of the same input as one, their outputs side by side; before they are used."""
        weights = [layer.plain for layer in layers if layer.plain is not None]
        if all(layer.bias is None for layer in layers):
            return cls(torch.cat(weights), None)
        pairs = zip(weights, (layer.bias for layer in layers), strict=True)
        biases = [weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in pairs]
        return cls(torch.cat(weights), torch.cat(biases))

    def forward(self, x: Tensor, then: str = "none") -> Tensor:
        """x (..., C) to (..., C'), through a GELU where `then` is "gelu"."""
        return torch.ops.mkldnn._linear_pointwise.default(x, self._weight(x), self.bias, then, [], "none")

    def combined(self, x: Tensor, other: Tensor, how: str) -> Tensor:
        """The layer of x (..., C), added to or multiplied by `other` (..., C'); `how` is "add" or "mul"."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self._weight(x), self.bias, how)

    def added(self, x: Tensor, other: Tensor) -> Tensor:
        """The layer of x (..., C) added to `other` (..., C')."""
        return self.combined(x, other, "add")

    def _weight(self, x: Tensor) -> Tensor:
        refuse_gradients(x)
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.plain, x.shape[:-1].numel())
            self.plain = None
        return self.packed


class PackedConv2d(nn.Module):
    """A convolution of feature maps that lie channels last."""

    def __init__(self, weight: Tensor, bias: Tensor | None, padding: int = 0, stride: int = 1) -> None:
        """Take over a weight (C', C, k, k) and a bias (C',); `padding` is the width of the zeros all around."""
        super().__init__()
        self.plain: Tensor | None = weight.detach()  # until it is packed
        self.bias = None if bias is None else bias.detach()
        self.packed: Tensor | None = None
        self.sizes = [padding, padding], [stride, stride], [1, 1], 1  # dilation and groups
        # What Winograd's way is made of, for maps of some size.
        may_pay = (*weight.shape[2:], padding, stride) == (3, 3, 1, 1) and winograd.pays(weight, math.inf)
        self.weight = self.plain if may_pay else None

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """x (B, C, H, W) to (B, C', H', W'), plus a shift (C',) where there is one."""
        x, bias = channels_last(x), self.bias
        if shift is not None:
            bias = shift if bias is None else bias + shift
        if self._large(x):
            return winograd.convolve(x, self.weight, bias)
        convolved = torch.ops.mkldnn._convolution_pointwise.default
        return convolved(x, self._weight(x), bias, *self.sizes, "none", [], "none")

    def added(self, x: Tensor, other: Tensor) -> Tensor:
        """The convolution of x (B, C, H, W) added to `other` (B, C', H', W')."""
        x, other = channels_last(x), channels_last(other)
        if self._large(x):
            return winograd.convolve(x, self.weight, self.bias, other)
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, other, self._weight(x), self.bias, *self.sizes, "add", 1.0, None, [], None
        )

    def _large(self, x: Tensor) -> bool:
        """Whether a map is large enough for Winograd's way, which does not depend on how many maps there are."""
        refuse_gradients(x)
        return self.weight is not None and winograd.pays(self.weight, x.shape[2] * x.shape[3])

    def _weight(self, x: Tensor) -> Tensor:
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(self.plain, *self.sizes, list(x.shape))
            self.plain = None
        return self.packed


def channels_last(x: Tensor) -> Tensor:
    """x (B, C, H, W) in the layout in which all channels of a position lie beside each other."""
    return x.contiguous(memory_format=torch.channels_last)


def refuse_gradients(x: Tensor) -> None:
    """Raise RuntimeError where a gradient of x is wanted, which packed layers would silently leave out."""
    if x.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("a network prepared for sampling has no gradients: take the one that it was made of")


@cache
def works(dtype: torch.dtype) -> bool:
    """Whether packed layers exist and give what plain ones do: PyTorch does not promise the functions they call."""
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
    """Results of a packed layer, each with the plain one's."""
    weight, bias, x, other = _numbers(dtype, (24, 16), (24,), (2, 5, 16), (2, 5, 24))
    layer, plain = PackedLinear(weight, bias), F.linear(x.float(), weight.float(), bias.float())
    return [
        (layer(x), plain),
        (layer(x, "gelu"), F.gelu(plain)),
        (layer.added(x, other), plain + other.float()),
        (layer.combined(x, other, "mul"), plain * other.float()),
    ]


def _convolution_results(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    weight, bias, x, other = _numbers(dtype, (24, 16, 3, 3), (24,), (2, 16, 6, 6), (2, 24, 6, 6))
    layer, plain = PackedConv2d(weight, bias, padding=1), F.conv2d(x.float(), weight.float(), bias.float(), padding=1)
    return [(layer(x), plain), (layer.added(x, other), plain + other.float())]


def _numbers(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
