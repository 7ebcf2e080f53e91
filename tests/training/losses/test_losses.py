"""The terms of the autoencoder's loss against their closed forms."""

import math

import pytest
import torch
from loss_terms import loss_terms, losses

from ldm.training.losses.adversarial import adaptive_weight, discriminator_loss, generator_loss, r1_loss
from ldm.training.losses.term import LossTerm


def terms(**reconstruction) -> list[LossTerm]:
    return loss_terms(reconstruction=reconstruction, kl={"weight": 0.25})


@pytest.mark.parametrize(("kind", "expected"), [("l1", 0.5), ("l2", 0.25)])
def test_reconstruction_is_the_mean_distance_per_value(kind: str, expected: float) -> None:
    images = torch.zeros(2, 3, 4, 4)
    found = losses(terms(kind=kind), images, images + 0.5, kl=torch.zeros(2))
    assert found["reconstruction"].item() == pytest.approx(expected)
    assert found["total"].item() == pytest.approx(expected)


def test_kl_has_its_published_weight_relative_to_the_sum_over_an_image() -> None:
    images, kl = torch.zeros(2, 3, 4, 4), torch.tensor([10.0, 20.0])
    found = losses(terms(), images, images + 0.5, kl=kl)
    values = 3 * 4 * 4
    published = 0.5 * values + 0.25 * 15.0
    assert found["total"].item() * values == pytest.approx(published)


def test_equivariance_is_the_distance_to_the_averaged_image() -> None:
    equivariant = loss_terms(reconstruction={"kind": "l2"}, equivariance={"weight": 0.25})
    images = torch.arange(16.0).view(1, 1, 4, 4).expand(2, 3, 4, 4)
    averages = torch.tensor([[2.5, 4.5], [10.5, 12.5]]).expand(2, 3, 2, 2)
    found = losses(equivariant, images, images, equivariance=averages + 2)
    assert found["equivariance"].item() == pytest.approx(4.0)
    assert found["total"].item() == pytest.approx(0.25 * 4.0)


def test_nll_is_minimal_if_the_log_variance_is_the_logarithm_of_the_distance() -> None:
    images = torch.zeros(2, 3, 4, 4)
    log_variance = torch.tensor(math.log(0.5), requires_grad=True)
    losses(terms(), images, images + 0.5, log_variance, kl=torch.zeros(2))["nll"].backward()
    assert log_variance.grad.item() == pytest.approx(0.0, abs=1e-6)


def test_adversarial_losses_equal_their_closed_forms() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])
    assert discriminator_loss(real, fake, "hinge").item() == pytest.approx(0.5 * (0.25 + 0.75))
    softplus = [math.log1p(math.exp(x)) for x in (-2.0, -0.5, -2.0, 0.5)]
    assert discriminator_loss(real, fake, "vanilla").item() == pytest.approx(0.25 * sum(softplus))
    assert discriminator_loss(real, fake, "non_saturating").item() == pytest.approx(0.5 * sum(softplus))
    assert generator_loss(fake, "hinge").item() == generator_loss(fake, "vanilla").item() == pytest.approx(0.75)
    of_fakes = [math.log1p(math.exp(x)) for x in (2.0, -0.5)]
    assert generator_loss(fake, "non_saturating").item() == pytest.approx(0.5 * sum(of_fakes))
    assert r1_loss(torch.tensor([1.0, 3.0]), 10.0).item() == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("given", "computed"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_terms_are_computed_in_the_given_dtype_but_at_least_float32(given: torch.dtype, computed: torch.dtype) -> None:
    values = torch.linspace(-1, 1, 96).view(2, 3, 4, 4)
    made = (values / 3).to(given)
    kl = torch.tensor([1.0, 2.0], dtype=computed)
    found = losses(terms(), values.to(computed), made, kl=kl)
    assert {term.dtype for term in found.values()} == {computed}
    assert found["reconstruction"].item() == (made.to(computed) - values.to(computed)).abs().mean().item()
    for kind in ("hinge", "vanilla", "non_saturating"):
        assert generator_loss(made, kind).dtype == discriminator_loss(made, made, kind).dtype == computed
    assert adaptive_weight(made, made).dtype == computed


def test_the_adaptive_weight_is_the_clamped_ratio_of_gradient_norms() -> None:
    nll, generator = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])
    assert adaptive_weight(nll, generator).item() == pytest.approx(5 / 2.0001)
    assert adaptive_weight(nll, torch.zeros(2)).item() == 1e4
