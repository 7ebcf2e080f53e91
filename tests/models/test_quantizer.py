"""Nearest codebook vectors, straight-through gradients, and latents of a VQ autoencoder."""

from __future__ import annotations

import pytest
import torch

from ldm.models.autoencoder import vq
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.vq import Quantizer, VQConfig, nearest

VQ = VQConfig(codebook_size=12, latent_channels=3, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)


def points(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def test_the_nearest_vector_has_the_smallest_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    codebook = points(40, seed=1)
    expected = (points(500)[:, None] - codebook).square().sum(-1).argmin(1)
    assert torch.equal(nearest(points(500), codebook), expected)
    monkeypatch.setattr(vq, "DISTANCES", 100)  # two points at a time
    assert torch.equal(nearest(points(500), codebook), expected)


def test_the_first_of_equally_near_vectors_is_chosen() -> None:
    assert nearest(torch.zeros(1, 2), torch.tensor([[0.0, 3.0], [1.0, 0.0], [-1.0, 0.0]])).tolist() == [1]


def test_distances_are_computed_in_float32_under_autocast() -> None:
    codebook = 100 + 0.01 * torch.arange(50.0)[:, None]  # bfloat16 does not tell them apart
    wanted = torch.tensor([7, 31, 48])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest(codebook[wanted], codebook), wanted)


def test_quantized_values_are_codebook_vectors_and_gradients_reach_only_z() -> None:
    quantize = Quantizer(12, 3)
    z = points(2 * 4 * 5).view(2, 4, 5, 3).permute(0, 3, 1, 2).requires_grad_()
    quantised = quantize(z)
    assert torch.equal(quantised, quantize.lookup(quantize.indices(z)))
    weights = torch.randn_like(z)
    (quantised * weights).sum().backward()
    assert torch.equal(z.grad, weights)
    assert quantize.embedding.weight.grad is None


@torch.no_grad()
def test_encode_returns_latents_before_quantization_and_decode_quantizes_them_at_the_scale_of_the_codebook() -> None:
    torch.manual_seed(0)
    autoencoder = Autoencoder(VQ)
    torch.nn.init.normal_(autoencoder.quantize.embedding.weight, 0.0, 0.1)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    plain = autoencoder.encode(images)
    assert torch.equal(plain.sample(noise=torch.randn(2, 3, 4, 4)), plain.mode())
    assert plain.moments.shape == (2, 3, 4, 4)
    indices, expected = autoencoder.indices(plain.mode()), autoencoder.decode(plain.mode())
    autoencoder.config = VQ.model_copy(update={"scaling_factor": 4.0, "shift_factor": 0.5})
    latents = autoencoder.encode(images).mode()
    torch.testing.assert_close(latents, (plain.moments - 0.5) * 4)
    assert torch.equal(autoencoder.indices(latents), indices)
    torch.testing.assert_close(autoencoder.decode(latents), expected)
    torch.testing.assert_close(autoencoder.decode(autoencoder.lookup(indices)), expected)


@pytest.mark.parametrize("statistics", [{"statistics": "channel"}, {"scaling_factor": (1.0, 2.0, 3.0)}])
def test_a_scaling_factor_per_channel_raises_an_error_with_a_codebook(statistics: dict) -> None:
    with pytest.raises(ValueError, match="one scaling_factor"):
        VQConfig(codebook_size=4, latent_channels=3, **statistics)
