"""The patch discriminator is that of pix2pix."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm.config import AdversarialLossConfig
from ldm.models.discriminator import PatchDiscriminator


def test_its_parameters_number_those_of_pix2pix() -> None:
    # 4x4 convolutions 3-64-128-256-512-1, biases in the first and the last, two parameters a channel of batch norm.
    expected = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512) + 64 + 1 + 2 * (128 + 256 + 512)
    assert sum(weight.numel() for weight in PatchDiscriminator(AdversarialLossConfig()).parameters()) == expected


def test_a_logit_sees_70_by_70_pixels() -> None:
    network = PatchDiscriminator(AdversarialLossConfig(discriminator_channels=4, discriminator_norm="none"))
    pictures = torch.rand(1, 3, 128, 128, requires_grad=True)
    logits = network(pictures)
    assert logits.shape == (1, 1, 14, 14)
    logits[0, 0, 7, 7].backward()
    assert pictures.grad is not None
    seen = pictures.grad[0].abs().sum(0).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [70, 70]


@pytest.mark.parametrize(("kind", "layer"), [("batch", nn.BatchNorm2d), ("group", nn.GroupNorm), ("none", nn.Identity)])
def test_each_normalisation_follows_all_but_the_first_and_last_convolutions(kind: str, layer: type) -> None:
    config = AdversarialLossConfig(discriminator_layers=2, discriminator_channels=12, discriminator_norm=kind)
    network = PatchDiscriminator(config)
    assert sum(type(module) is layer for module in network.layers) == 2
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 1, 6, 6)


def test_convolutions_start_normal_with_a_deviation_of_two_hundredths() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(AdversarialLossConfig())
    weights = torch.cat([m.weight.flatten() for m in network.modules() if isinstance(m, nn.Conv2d)])
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)
