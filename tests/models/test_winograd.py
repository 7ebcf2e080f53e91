"""Winograd's minimal filtering gives the convolution that it stands for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.models.fast import winograd
from ldm.models.fast.packed import PackedConv2d, channels_last


def error(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


@torch.inference_mode()
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("size", [(4, 4), (7, 9), (2, 17), (33, 6)])
@pytest.mark.parametrize("few_tiles", [0, 256], ids=["strip by strip", "filters part by part"])
def test_it_is_the_convolution_at_any_size(
    monkeypatch: pytest.MonkeyPatch, few_tiles: int, size: tuple[int, int], biased: bool
) -> None:
    monkeypatch.setattr(winograd, "FEW_TILES", few_tiles)
    monkeypatch.setattr(winograd, "WORK", 36 * 12 * 4)  # some tiles a strip
    monkeypatch.setattr(winograd, "FILTERS", 5)  # the last part is a smaller one
    x, weight, other = torch.randn(2, 7, *size), torch.randn(12, 7, 3, 3), torch.randn(2, 12, *size)
    bias = torch.randn(12) if biased else None
    exact = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)
    x, other = channels_last(x), channels_last(other)
    assert error(winograd.convolve(x, weight, bias), exact) < 1e-6
    assert error(winograd.convolve(x, weight, bias, other), exact + other) < 1e-6


@torch.inference_mode()
@pytest.mark.parametrize(("channels", "side"), [(128, 32), (640, 16)])
def test_layers_that_it_pays_for_lose_no_digits_by_it(
    channels: int, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(winograd.PAYS, 16 * 16, 640)  # which depends on the processor
    x = channels_last(torch.randn(1, channels, side, side))
    weight, shift = torch.randn(channels, channels, 3, 3), torch.randn(channels)
    layer = PackedConv2d(weight, torch.randn(channels), padding=1)
    assert layer.winograd_positions <= side * side
    exact = F.conv2d(x.double(), weight.double(), (layer.bias + shift).double(), padding=1)
    plain = F.conv2d(x, weight, layer.bias + shift, padding=1)
    assert error(layer(x, shift=shift), exact) < max(1e-6, 2 * error(plain, exact))


def test_it_does_not_pay_for_few_channels_small_maps_or_other_types() -> None:
    wide = torch.empty(640, 640, 3, 3)
    assert winograd.least_positions(wide) > 8 * 8
    assert winograd.least_positions(wide[:128, :128]) > 16 * 16
    assert winograd.least_positions(wide[:64]) == winograd.least_positions(wide.bfloat16()) == math.inf
