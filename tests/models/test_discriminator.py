"""The patch discriminator of pix2pix, its normalization and its gradient penalty."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm.models.discriminator import PatchDiscriminator
from ldm.training.losses.adversarial import AdversarialLossConfig


def test_it_has_as_many_parameters_as_pix2pix() -> None:
    # 4x4 convolutions 3-64-128-256-512-1, biases in the first and the last, two parameters a channel of batch norm.
    expected = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512) + 64 + 1 + 2 * (128 + 256 + 512)
    assert sum(weight.numel() for weight in PatchDiscriminator(AdversarialLossConfig()).parameters()) == expected


def test_a_logit_depends_on_70_by_70_pixels() -> None:
    network = PatchDiscriminator(AdversarialLossConfig(discriminator_channels=4, discriminator_norm="none"))
    images = torch.rand(1, 3, 128, 128, requires_grad=True)
    logits, _ = network(images)
    assert logits.shape == (1, 1, 14, 14)
    logits[0, 0, 7, 7].backward()
    assert images.grad is not None
    seen = images.grad[0].abs().sum(0).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [70, 70]


@pytest.mark.parametrize(("kind", "layer"), [("batch", nn.BatchNorm2d), ("group", nn.GroupNorm), ("none", nn.Identity)])
def test_normalization_follows_all_but_the_first_and_last_convolutions(kind: str, layer: type) -> None:
    config = AdversarialLossConfig(discriminator_layers=2, discriminator_channels=12, discriminator_norm=kind)
    network = PatchDiscriminator(config)
    assert sum(type(module) is layer for module in network.layers) == 2
    assert network(torch.rand(2, 3, 32, 32))[0].shape == (2, 1, 6, 6)


def test_spectral_normalization_gives_every_convolution_a_norm_of_one() -> None:
    network = discriminator("spectral")
    images = torch.rand(2, 3, 32, 32)
    for _ in range(300):  # a step of power iteration each
        network(images)
    convolutions = [layer for layer in network.layers if isinstance(layer, nn.Conv2d)]
    norms = [torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() for layer in convolutions]
    assert norms == pytest.approx([1.0] * 4, rel=1e-3)


@pytest.mark.parametrize("kind", ["group", "spectral", "none"])
def test_penalties_are_the_squared_gradients_of_each_image(kind: str) -> None:
    network = discriminator(kind).eval().double()
    images = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    logits, penalties = network(images, 2)
    assert logits.shape == (3, 1, 6, 6)
    for image, penalty in zip(images, penalties, strict=False):
        seen = image[None].clone().requires_grad_()
        [gradient] = torch.autograd.grad(network(seen)[0].sum(), seen)
        assert penalty.item() == pytest.approx(gradient.square().sum().item() / 36, rel=1e-9)
    assert penalties.shape == (2,)
    assert network(images)[1].shape == (0,)


def test_the_penalty_of_a_linear_discriminator_is_the_norm_of_its_weights() -> None:
    network = discriminator("none")
    network.layers = nn.Sequential(nn.Conv2d(3, 1, 8))
    _, penalties = network(torch.rand(2, 3, 8, 8), 2)
    weight = network.layers[0].weight
    torch.testing.assert_close(penalties, weight.square().sum().expand(2))
    [gradient] = torch.autograd.grad(penalties.mean(), weight)
    torch.testing.assert_close(gradient, 2 * weight)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_penalties_and_spectral_norms_are_computed_in_float32_under_autocast(precision: torch.dtype) -> None:
    images = torch.rand(2, 3, 32, 32)
    found = []
    for enabled in (False, True):
        network = discriminator("spectral")
        with torch.autocast("cpu", precision, enabled=enabled):
            logits, penalties = network(images, 2)
        assert logits.dtype == (precision if enabled else torch.float32)
        buffers = torch.cat([buffer.flatten() for buffer in network.buffers()])
        found.append(
            (penalties, buffers, *torch.autograd.grad(penalties.sum(), network.parameters(), allow_unused=True))
        )
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_penalty_with_batch_normalization_raises_an_error() -> None:
    with pytest.raises(ValueError, match="set discriminator_norm to group, spectral or none"):
        AdversarialLossConfig(r1_weight=1.0)


def discriminator(kind: str) -> PatchDiscriminator:
    torch.manual_seed(0)
    options = {"discriminator_layers": 2, "discriminator_channels": 8, "discriminator_norm": kind}
    return PatchDiscriminator(AdversarialLossConfig(**options))


def test_initial_weights_of_convolutions_have_a_standard_deviation_of_0_02() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(AdversarialLossConfig())
    weights = torch.cat([m.weight.flatten() for m in network.modules() if isinstance(m, nn.Conv2d)])
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)
