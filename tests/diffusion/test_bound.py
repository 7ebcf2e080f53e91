"""The variational bound where the likelihood is known: Gaussian data, by quadrature instead of chance."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.config.diffusion import schedule_config
from ldm.diffusion.bound import Decoder, gaussian_kl, variational_bound
from ldm.diffusion.bound import _decoders as decoders
from ldm.diffusion.denoiser import Denoised, Denoiser
from ldm.diffusion.level import Grid, Level
from ldm.diffusion.schedule import make_schedule
from ldm.errors import UserError

MEAN, DEVIATION = 0.3, 0.6  # of the Gaussian data
NODES, WEIGHTS = (torch.from_numpy(array) for array in np.polynomial.hermite_e.hermegauss(8))
WEIGHTS = WEIGHTS / WEIGHTS.sum()  # of a standard normal number, exact for polynomials of degree 15


def gaussian_denoiser(grid: Grid, exact_variance: bool) -> Denoiser:
    """E[x0 | x], and if asked the variance of the true q(x_s | x_t), which for Gaussian data is Gaussian."""
    following = {level.t.item(): after for level, after in grid.steps()}

    def denoise(x: Tensor, level: Level) -> Denoised:
        spread = level.alpha**2 * DEVIATION**2 + level.sigma**2  # of x_t
        x0 = MEAN + level.alpha * DEVIATION**2 / spread * (x - level.alpha * MEAN)
        if not exact_variance:
            return Denoised(x0, x0)
        after = following[level.t.item()]
        # x_t = r x_s + noise, so Cov(x_s, x_t) = r Var(x_s) and Var(x_s | x_t) follows.
        spread_after = after.alpha**2 * DEVIATION**2 + after.sigma**2
        variance = spread_after - (level.alpha / after.alpha * spread_after) ** 2 / spread
        return Denoised(x0, x0, variance.log().expand_as(x))

    return denoise


def expected_bound(denoiser: Denoiser, x0: float, grid: Grid, **options: str) -> float:
    """The expectation of the bound over noise; every term is a polynomial of one normal number a dimension."""
    bound = variational_bound(
        denoiser, torch.full((8, 1), x0, dtype=torch.float64), grid, lambda x: NODES[:, None], "gaussian", **options
    )
    return float((WEIGHTS * bound.total).sum())


def surprise(x0: float) -> float:
    """-log2 p(x0) of the data."""
    return (0.5 * math.log(2 * math.pi * DEVIATION**2) + (x0 - MEAN) ** 2 / (2 * DEVIATION**2)) / math.log(2)


@pytest.mark.parametrize(
    "config",
    [
        schedule_config(kind="linear", num_train_timesteps=6, beta_start=0.02, beta_end=0.6, zero_terminal_snr=True),
        schedule_config(kind="cosine", num_train_timesteps=12, zero_terminal_snr=True),
        schedule_config(kind="flow", num_train_timesteps=5, shift=2.0),
    ],
)
def test_with_the_true_variance_the_bound_is_the_likelihood_itself(config: schedule_config) -> None:
    grid = make_schedule(config).chain()
    for x0 in (-1.5, 0.0, 0.3, 2.0):
        made = expected_bound(gaussian_denoiser(grid, exact_variance=True), x0, grid)
        assert made == pytest.approx(surprise(x0), abs=1e-9)


def test_with_the_large_variance_the_bound_is_above_and_tightens_at_first_order_with_more_steps() -> None:
    gaps = []
    for total in (25, 50, 100, 200):
        config = schedule_config(kind="cosine", num_train_timesteps=total, zero_terminal_snr=True)
        grid = make_schedule(config).chain()
        made = expected_bound(gaussian_denoiser(grid, exact_variance=False), 0.1, grid, variance="large")
        gaps.append(made - surprise(0.1))
    ratios = [fine / coarse for coarse, fine in itertools.pairwise(gaps)]
    assert ratios == pytest.approx([0.5] * 3, abs=0.01)
    assert 0 < gaps[-1] < 0.007


def test_a_schedule_that_leaves_signal_pays_for_it_in_the_prior_term() -> None:
    grid = make_schedule(schedule_config(num_train_timesteps=50)).chain()
    bound = variational_bound(
        gaussian_denoiser(grid, True), torch.full((2, 3), 0.7, dtype=torch.float64), grid, torch.zeros_like, "gaussian"
    )
    alpha, sigma = (float(value) for value in (grid.levels[0].alpha, grid.levels[0].sigma))
    nats = 0.5 * (sigma**2 + (alpha * 0.7) ** 2 - 1) - math.log(sigma)
    assert bound.prior.tolist() == pytest.approx([nats / math.log(2)] * 2, rel=1e-12)
    assert bound.steps.shape == (2, 50)
    torch.testing.assert_close(bound.total, bound.prior + bound.steps.sum(1))


@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_terms_are_those_of_ddpm_for_images_of_8_bits(variance: str) -> None:
    """Ho et al. 2020, eq. 5, 7, 8 and 13, from betas, one sample and one timestep at a time.

    With the large variance the first timestep has the posterior variance of the second (guided-diffusion, FIXED_LARGE).
    """
    betas = torch.linspace(0.01, 0.3, 10, dtype=torch.float64)
    bar = (1 - betas).cumprod(0)
    grid = make_schedule(schedule_config(kind="linear", num_train_timesteps=10, beta_start=0.01, beta_end=0.3)).chain()
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randint(256, (2, 3, 4, 4), generator=generator) / 127.5 - 1
    x0 = x0.double().round(decimals=12)
    noise = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=generator)

    def seen(x: Tensor) -> Tensor:
        return 0.9 * x + 0.1 * torch.tanh(x.roll(1, -1))

    made = variational_bound(lambda x, level: Denoised(seen(x), x), x0, grid, lambda x: noise, variance=variance)
    normal = torch.distributions.Normal
    for t in range(10):
        before = bar[t - 1] if t else torch.ones(())
        x = bar[t].sqrt() * x0 + (1 - bar[t]).sqrt() * noise
        small = betas[max(t, 1)] * (1 - bar[max(t, 1) - 1]) / (1 - bar[max(t, 1)])
        deviation = (betas[t] if variance == "large" and t > 0 else small).sqrt()
        if t == 0:
            reach = normal(seen(x), deviation)
            upper = torch.where(x0 > 0.999, 1.0, reach.cdf(x0 + 1 / 255))
            lower = torch.where(x0 < -0.999, 0.0, reach.cdf(x0 - 1 / 255))
            nats = -(upper - lower).log()
        else:
            means = [
                before.sqrt() * betas[t] / (1 - bar[t]) * image
                + (1 - betas[t]).sqrt() * (1 - before) / (1 - bar[t]) * x
                for image in (x0, seen(x))
            ]
            nats = torch.distributions.kl_divergence(normal(means[0], small.sqrt()), normal(means[1], deviation))
        bits = nats.flatten(1).mean(1) / math.log(2)
        torch.testing.assert_close(made.steps[:, 9 - t], bits, rtol=1e-8, atol=0)


def test_kl_of_gaussians_is_that_of_torch() -> None:
    difference, one, other = torch.randn(3, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(
        normal(difference, (one / 2).exp()), normal(torch.zeros(100).double(), (other / 2).exp())
    )
    torch.testing.assert_close(gaussian_kl(difference, one, other), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("mean", [-1.3, -0.2, 0.0, 0.999])
@pytest.mark.parametrize("deviation", [1e-3, 0.01, 0.5])
def test_the_decoder_is_a_distribution_over_256_values(mean: float, deviation: float) -> None:
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    nats = decoders["discretised"](
        values, torch.full((256,), mean).double(), torch.full((256,), 2 * math.log(deviation)).double()
    )
    assert nats.isfinite().all()
    assert (-nats).exp().sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    ("value", "mean", "deviation"), [(0, 0.9, 0.01), (255, -1, 0.02), (200, 0.57, 0.3), (7, 1, 0.05)]
)
def test_the_decoder_keeps_its_digits_however_far_the_mean_is(value: int, mean: float, deviation: float) -> None:
    mpmath.mp.dps = 60
    x, half = mpmath.mpf(value) / 127.5 - 1, mpmath.mpf(1) / 255
    side = -1 if x < mean else 1  # the tail on that side is the small one

    def tail(edge: mpmath.mpf) -> mpmath.mpf:
        return mpmath.erfc(side * (edge - mean) / deviation / mpmath.sqrt(2)) / 2

    beyond = 0 if value in (0, 255) else tail(x + side * half)  # the outer bins are open
    expected = -mpmath.log(tail(x - side * half) - beyond)
    arguments = (
        torch.tensor(number, dtype=torch.float64) for number in (value / 127.5 - 1, mean, 2 * math.log(deviation))
    )
    assert decoders["discretised"](*arguments).item() == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("decoder", ["discretised", "gaussian"])
def test_the_bound_has_a_gradient_at_the_ends_of_the_range(decoder: Decoder) -> None:
    x0 = torch.tensor([-1.0, 0.0, 1.0])
    mean, log_variance = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    decoders[decoder](x0, mean, log_variance).sum().backward()
    assert mean.grad is not None
    assert log_variance.grad is not None
    assert torch.cat([mean.grad, log_variance.grad]).isfinite().all()


def test_a_grid_that_ends_with_noise_raises_an_error() -> None:
    grid = make_schedule(schedule_config()).grid(5)
    with pytest.raises(UserError, match="ends without noise"):
        variational_bound(gaussian_denoiser(grid, False), torch.zeros(1, 1), grid, torch.zeros_like)
