"""Posteriors and latent statistics of the autoencoder."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.autoencoder.kl import DiagonalGaussian

TINY = AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, latent_channels=3)


@pytest.fixture
def moments() -> torch.Tensor:
    return torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(0))


def test_kl_equals_torchs_divergence_summed_over_a_latent(moments: torch.Tensor) -> None:
    mean, log_variance = moments.double().chunk(2, dim=1)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(DiagonalGaussian(moments.double(), TINY).kl(), expected, rtol=1e-10, atol=0)


def test_sampling_with_a_generator_equals_sampling_with_its_noise(moments: torch.Tensor) -> None:
    posterior = DiagonalGaussian(moments, TINY)
    noise = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(7))
    assert torch.equal(posterior.sample(torch.Generator().manual_seed(7)), posterior.sample(noise=noise))
    assert torch.equal(posterior.sample(noise=torch.zeros(4, 3, 5, 5)), posterior.mode())


def test_without_measured_statistics_latents_are_z(moments: torch.Tensor) -> None:
    assert torch.equal(DiagonalGaussian(moments, TINY).mode(), moments[:, :3])


@pytest.mark.parametrize("statistics", ["tensor", "channel"])
def test_measured_statistics_give_latents_zero_mean_and_unit_variance(statistics: str) -> None:
    z = torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = z * torch.tensor([0.5, 2.0, 7.0]).view(1, 3, 1, 1) + torch.tensor([3.0, -1.0, 0.2]).view(1, 3, 1, 1)
    autoencoder = Autoencoder(TINY.model_copy(update={"statistics": statistics}))
    autoencoder.set_statistics(z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0).sqrt())
    latents = DiagonalGaussian(torch.cat([z, z], dim=1), autoencoder.config).mode()
    over = (0, 2, 3) if statistics == "channel" else (0, 1, 2, 3)
    torch.testing.assert_close(latents.mean(over), torch.zeros_like(latents.mean(over)), rtol=0, atol=1e-12)
    torch.testing.assert_close(latents.var(over, correction=0), torch.ones_like(latents.mean(over)))


def test_decode_inverts_the_scaling_of_encode() -> None:
    autoencoder = Autoencoder(TINY).double()
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        before = autoencoder.decode(autoencoder.encode(images).mode())
        autoencoder.config = TINY.model_copy(update={"scaling_factor": (0.5, 3.0, 1.5), "shift_factor": (1.0, 0.0, -2)})
        after = autoencoder.decode(autoencoder.encode(images).mode())
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-12)


def test_forward_reconstructs_from_the_given_noise_and_reaches_every_weight() -> None:
    autoencoder = Autoencoder(TINY)
    images, noise = torch.rand(2, 3, 8, 8), torch.randn(2, 3, 4, 4)
    reconstructions, posterior = autoencoder(images, noise)
    assert torch.equal(reconstructions, autoencoder.decode(posterior.sample(noise=noise)))
    (reconstructions.square().sum() + posterior.kl().sum()).backward()
    assert all(weight.grad is not None for weight in autoencoder.parameters())
    assert autoencoder.last_layer.grad is not None


def test_half_precision_keeps_the_posterior_in_float32() -> None:
    autoencoder = Autoencoder(TINY).to(torch.bfloat16)
    latents = autoencoder.encode(torch.rand(1, 3, 8, 8)).mode()
    assert latents.dtype == torch.float32
    assert autoencoder.decode(latents).dtype == torch.bfloat16
