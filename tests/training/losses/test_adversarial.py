"""The autoencoder's whole loss against the formulas of the published code (Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_stages import autoencoder_stage, micro_batches
from torch import Tensor

from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.training.losses.adversarial import adaptive_limit
from ldm.training.losses.term import Output, total_loss
from ldm.training.stages.autoencoder import AutoencoderStage

ADVERSARIAL = ("weight=0.5", "start_step=1", "discriminator_channels=8", "discriminator_norm=group")
OTHERS = ("reconstruction.kind=l1", "perceptual.weight=0", "equivariance.weight=0")
SHARED = tuple(f"loss.{option}" for option in (*(f"adversarial.{each}" for each in ADVERSARIAL), *OTHERS))
KL = ("loss.kl.weight=1e-3", "loss.reconstruction.initial_log_variance=0.3")
VQ = ("autoencoder.kind=vq", "autoencoder.codebook_size=16", "loss.codebook.weight=0.7", "loss.codebook.start_steps=0")


def published_weight(nll: Tensor, generator: Tensor, last_layer: Tensor) -> Tensor:
    """`calculate_adaptive_weight` of both classes."""
    norms = [torch.autograd.grad(term, last_layer, retain_graph=True)[0].norm() for term in (nll, generator)]
    return torch.clamp(norms[0] / (norms[1] + 1e-4), 0.0, 1e4).detach()


def published_kl_loss(images: Tensor, output: Output, logits: Tensor, last_layer: Tensor) -> Tensor:
    """`LPIPSWithDiscriminator` without LPIPS: sums over an image, means over the batch."""
    log_variance, batch = torch.tensor(0.3), len(images)
    nll = ((images - output.images).abs() / log_variance.exp() + log_variance).sum() / batch
    generator = -logits.mean()
    weight = 0.5 * published_weight(nll, generator, last_layer)
    return nll + 1e-3 * output.terms["kl"].divergence.sum() / batch + weight * generator


def published_vq_loss(images: Tensor, output: Output, logits: Tensor, last_layer: Tensor) -> Tensor:
    """`VQLPIPSWithDiscriminator` without LPIPS: means over all values."""
    nll, generator = (images - output.images).abs().mean(), -logits.mean()
    z, nearest, _ = output.terms["codebook"]
    codebook = 0.7 * (nearest - z.detach()).square().mean() + 0.25 * (nearest.detach() - z).square().mean()
    return nll + 0.5 * published_weight(nll, generator, last_layer) * generator + codebook


def scaled_stage(scale: float, *overrides: str) -> AutoencoderStage:
    """Build a stage whose discriminator's logits are multiplied, which moves the adaptive weight."""
    stage = autoencoder_stage(*SHARED, *overrides)
    with torch.no_grad():
        stage.trained["discriminator"].network.layers[-1].weight.mul_(scale)
    return stage


@pytest.mark.parametrize(
    ("kind", "published", "scale", "limited"),
    [
        (KL, published_kl_loss, 1e-2, True),
        (KL, published_kl_loss, 1e4, False),
        (VQ, published_vq_loss, 1e-2, False),  # the same ratio, which VQ does not limit
    ],
)
def test_the_loss_is_that_of_the_published_code(
    kind: tuple[str, ...], published: Callable[..., Tensor], scale: float, limited: bool
) -> None:
    stage = scaled_stage(scale, *kind)
    [batch] = micro_batches(1)
    images, last_layer = batch.images, stage.autoencoder.last_layer
    output = stage.network.network(images, torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0)))
    found = total_loss(list(stage.terms.values()), images, output)
    logits, _ = stage.trained["discriminator"].network(output.images)
    values = images[0].numel() if kind is KL else 1
    expected = published(images, output, logits, last_layer) / values
    assert found["total"].item() == pytest.approx(expected.item(), rel=1e-5)
    ours, theirs = (torch.autograd.grad(loss, last_layer, retain_graph=True)[0] for loss in (found["total"], expected))
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()
    limit = 0.5 * adaptive_limit(stage.autoencoder.config, images[0].numel())
    assert (found["adversarial_weight"].item() == pytest.approx(limit)) == limited


def test_the_largest_adaptive_weight_of_kl_falls_with_the_size_of_the_image() -> None:
    sizes = {side: adaptive_limit(AutoencoderConfig(), 3 * side * side) for side in (64, 256)}
    assert sizes == pytest.approx({64: 0.8138, 256: 0.05086}, rel=1e-3)
