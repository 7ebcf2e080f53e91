"""Closed forms: the DDPM posterior, and the ideal denoiser of a Gaussian, whose paths are known exactly."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from ldm.config.diffusion import schedule_config
from ldm.diffusion.denoiser import Denoised
from ldm.diffusion.level import Grid, Level
from ldm.diffusion.samplers.first_order import FirstOrder
from ldm.diffusion.schedule import make_schedule

MEAN, DEVIATION = 0.7, 0.4  # of the Gaussian data


def ideal(x: Tensor, level: Level) -> Denoised:
    """E[x0 | x] for data N(MEAN, DEVIATION^2)."""
    gain = level.alpha * DEVIATION**2 / (level.alpha**2 * DEVIATION**2 + level.sigma**2)
    x0 = MEAN + gain * (x - level.alpha * MEAN)
    return Denoised(x0, x0)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def no_noise(x: Tensor) -> Tensor:
    raise AssertionError("a deterministic sampler asked for noise")


def exact_end(x: Tensor, level: Level, final: Level) -> Tensor:
    """Where the probability flow takes x: it keeps the distance to the mean in standard deviations."""
    spread = [(at.alpha**2 * DEVIATION**2 + at.sigma**2).sqrt() for at in (level, final)]
    return final.alpha * MEAN + spread[1] / spread[0] * (x - level.alpha * MEAN)


@pytest.mark.parametrize("t", [1, 20, 500, 999])
def test_the_step_at_eta_1_is_the_ddpm_posterior(t: int) -> None:
    """Mean and variance of q(x_{t-1} | x_t, x_0), Ho et al. 2020, eq. 7, from betas alone."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bar = (1 - betas).cumprod(0)
    config = schedule_config(kind="linear", beta_start=1e-4, beta_end=0.02)
    levels = [make_schedule(config).level(torch.tensor(at), torch.float64) for at in (t, t - 1)]
    x, x0, noise = random(2, 3, 4, 4), random(2, 3, 4, 4, seed=1), random(2, 3, 4, 4, seed=2)
    mean = bar[t - 1].sqrt() * betas[t] / (1 - bar[t]) * x0
    mean = mean + (1 - betas[t]).sqrt() * (1 - bar[t - 1]) / (1 - bar[t]) * x
    small = (1 - bar[t - 1]) / (1 - bar[t]) * betas[t]
    for variance, expected in {"small": small, "large": betas[t]}.items():
        grid = Grid((*levels, levels[-1]))  # with one more, so that the step is not the last
        step = next(FirstOrder(1.0, variance)(lambda x, level: Denoised(x0, x0), x, grid, lambda x: noise))
        torch.testing.assert_close(step.x, mean + expected.sqrt() * noise, rtol=1e-9, atol=1e-12)


def test_ddim_converges_with_order_1_to_the_exact_path() -> None:
    x, errors = random(64, 1), []
    for steps in (50, 100, 200):
        angles = torch.linspace(1.5, 0.1, steps + 1, dtype=torch.float64)  # alpha = cos, sigma = sin: a smooth path
        grid = Grid(tuple(Level(angle.cos(), angle.sin(), torch.tensor(0)) for angle in angles))
        *_, last = FirstOrder()(ideal, x, grid, no_noise)
        errors.append((last.x - exact_end(x, grid.levels[0], grid.levels[-1])).abs().max().item())
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert orders == pytest.approx([1.0, 1.0], abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_samples_from_zero_signal_have_the_datas_mean_and_variance(eta: float) -> None:
    config = schedule_config(spacing="trailing", set_alpha_to_one=True, zero_terminal_snr=True)
    generator = torch.Generator().manual_seed(1)
    noise = lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator)  # noqa: E731
    *_, last = FirstOrder(eta)(ideal, random(20_000, 1), make_schedule(config).grid(1000), noise)
    assert last.x.mean().item() == pytest.approx(MEAN, abs=0.012)  # four standard errors
    assert last.x.std().item() == pytest.approx(DEVIATION, rel=0.02)


def test_the_first_step_from_zero_signal_is_exact() -> None:
    """Without signal x is the noise itself: DDIM mixes it with the image, DDPM replaces all but a share of it."""
    config = schedule_config(spacing="trailing", zero_terminal_snr=True)
    schedule = make_schedule(config)
    levels = tuple(schedule.level(torch.tensor(t), torch.float64) for t in (999, 949))
    x, x0 = random(2, 3, 4, 4), random(2, 3, 4, 4, seed=1)
    following = levels[1]
    (deterministic,) = FirstOrder()(lambda x, level: Denoised(x0, x0), x, Grid(levels), no_noise)
    torch.testing.assert_close(deterministic.x, following.alpha * x0 + following.sigma * x, rtol=1e-14, atol=1e-14)
    noise = random(2, 3, 4, 4, seed=2)
    (ancestral,) = FirstOrder(1.0)(lambda x, level: Denoised(x0, x0), x, Grid(levels), lambda x: noise)
    torch.testing.assert_close(ancestral.x, following.alpha * x0 + following.sigma * noise, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("sampler", [FirstOrder(), FirstOrder(1.0), FirstOrder(1.0, "large")])
def test_the_last_step_to_no_noise_gives_the_image_itself(sampler: FirstOrder) -> None:
    grid = make_schedule(schedule_config(set_alpha_to_one=True)).grid(1)
    (step,) = sampler(ideal, random(2, 3, 4, 4), grid, no_noise)
    assert torch.equal(step.x, step.denoised.x0)


def test_eta_0_samples_no_noise_and_larger_eta_samples_it_once_per_noisy_step() -> None:
    grid = make_schedule(schedule_config(set_alpha_to_one=True)).grid(10)
    first, second = ([step.x for step in FirstOrder()(ideal, random(2, 1), grid, no_noise)] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    draws: list[Tensor] = []
    noise = lambda x: draws.append(x) or random(*x.shape)  # type: ignore[func-returns-value]  # noqa: E731
    list(FirstOrder(0.2)(ideal, random(2, 1), grid, noise))
    assert len(draws) == 9  # none in the step that ends without noise


def test_each_step_is_yielded_with_its_level() -> None:
    grid = make_schedule(schedule_config()).grid(5)
    assert [step.level for step in FirstOrder()(ideal, random(2, 1), grid, no_noise)] == list(grid.levels[1:])


def test_the_straight_path_of_rectified_flow_is_walked_exactly() -> None:
    """Nothing in the step needs alpha^2 + sigma^2 = 1: on alpha = 1 - sigma it is Euler's step along x0 - noise."""
    times = torch.tensor([1.0, 0.6, 0.0], dtype=torch.float64)
    grid = Grid(tuple(Level(1 - time, time, (1000 * time).long()) for time in times))
    x0, noise = random(2, 3, 4, 4), random(2, 3, 4, 4, seed=1)
    first, last = FirstOrder()(lambda x, level: Denoised(x0, x0), noise, grid, no_noise)
    torch.testing.assert_close(first.x, noise + 0.4 * (x0 - noise), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(last.x, x0, rtol=1e-14, atol=1e-14)
