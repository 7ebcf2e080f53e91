"""Guidance by gradients against closed forms: a mixture whose parts are classes, and a Gaussian that is measured."""

from __future__ import annotations

import pytest
import torch
from closed_forms import DEVIATION, DEVIATIONS, MEANS, WEIGHTS, at_ratio, gaussian, mixture
from torch import Tensor

from ldm.config.diffusion import schedule_config
from ldm.diffusion.denoiser import Denoised
from ldm.diffusion.gradient_guidance import by_classifier, by_image
from ldm.diffusion.level import Grid, Level
from ldm.diffusion.samplers.first_order import coefficients
from ldm.diffusion.samplers.heun import heun
from ldm.diffusion.schedule import make_schedule

X = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
NO_SIGNAL = Level(*(torch.tensor(value, dtype=torch.float64) for value in (0.0, 1.0)), torch.tensor(999))


def log_probability(part: int):
    """log p(part | x) in the mixture, exactly."""

    def classify(x: Tensor, level: Level) -> Tensor:
        weights, means, deviations = (torch.tensor(value, dtype=x.dtype) for value in (WEIGHTS, MEANS, DEVIATIONS))
        variance = level.alpha**2 * deviations**2 + level.sigma**2
        joint = weights.log() - variance.log() / 2 - (x - level.alpha * means) ** 2 / variance / 2  # (B, 3)
        return joint.log_softmax(-1)[:, part]

    return classify


def of_part(x: Tensor, level: Level, part: int) -> Tensor:
    """E[x0 | x, part]."""
    gain = level.alpha * DEVIATIONS[part] ** 2 / (level.alpha**2 * DEVIATIONS[part] ** 2 + level.sigma**2)
    return MEANS[part] + gain * (x - level.alpha * MEANS[part])


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("ratio", [0.05, 0.5, 2.0, 20.0])
def test_at_scale_1_the_image_seen_is_that_of_the_class_alone(part: int, ratio: float) -> None:
    level = at_ratio(ratio)
    guided = by_classifier(mixture, log_probability(part), 1.0)(X, level)
    torch.testing.assert_close(guided.x0, of_part(X, level, part), rtol=1e-9, atol=1e-9)


def test_the_scale_multiplies_what_is_added() -> None:
    level, plain = at_ratio(1.3), mixture(X, at_ratio(1.3)).x0
    once, thrice = (by_classifier(mixture, log_probability(0), scale)(X, level).x0 for scale in (1.0, 3.0))
    torch.testing.assert_close(thrice - plain, 3 * (once - plain))


def test_a_guided_sampler_ends_where_the_class_is() -> None:
    """With the exact classifier the probability flow is that of one Gaussian, whose end is known."""
    grid = Grid(tuple(at_ratio(ratio) for ratio in torch.linspace(3, -3, 401).exp().tolist()))
    *_, last = heun(by_classifier(mixture, log_probability(2), 1.0), X, grid, torch.zeros_like)
    spread = [(at.alpha**2 * DEVIATIONS[2] ** 2 + at.sigma**2).sqrt() for at in (grid.levels[0], grid.levels[-1])]
    distance = X - grid.levels[0].alpha * MEANS[2]
    torch.testing.assert_close(
        last.x, grid.levels[-1].alpha * MEANS[2] + spread[1] / spread[0] * distance, rtol=1e-3, atol=1e-3
    )


def test_a_step_at_eta_1_moves_as_algorithm_1_says_but_for_a_factor() -> None:
    """mu + s Sigma grad (Dhariwal and Nichol 2021) with Sigma = beta, over sqrt(1 - beta)."""
    chain, gradient = make_schedule(schedule_config()).chain(), torch.tensor(0.37, dtype=torch.float64)
    for index in (1, 500, 998):
        level, following = chain.levels[index : index + 2]
        beta = 1 - (level.alpha / following.alpha) ** 2
        _, of_x0, _ = coefficients(level, following, eta=1.0)
        torch.testing.assert_close(of_x0 * level.sigma**2 / level.alpha * gradient, beta / (1 - beta).sqrt() * gradient)


@pytest.mark.parametrize("ratio", [0.1, 1.0, 5.0])
def test_a_judge_of_the_image_adds_the_gradient_through_the_denoiser(ratio: float) -> None:
    level, measured, error = at_ratio(ratio), 1.1, 0.3
    guided = by_image(gaussian, lambda x0: -((x0 - measured) ** 2).sum(1) / error**2 / 2, 2.0)(X, level)
    seen = gaussian(X, level).x0
    through = level.alpha * DEVIATION**2 / (level.alpha**2 * DEVIATION**2 + level.sigma**2)  # d x0 / d x
    expected = seen - 2 * level.sigma**2 / level.alpha * (seen - measured) / error**2 * through
    torch.testing.assert_close(guided.x0, expected, rtol=1e-10, atol=1e-10)
    assert not guided.x0.requires_grad


def test_without_signal_nothing_is_added() -> None:
    for guide in (by_classifier(gaussian, log_probability(0), 3.0), by_image(gaussian, lambda x0: x0.sum(1), 3.0)):
        assert torch.equal(guide(X, NO_SIGNAL).x0, gaussian(X, NO_SIGNAL).x0)


def test_gradients_leave_x_and_the_log_variance_alone() -> None:
    def learned(x: Tensor, level: Level) -> Denoised:
        return gaussian(x, level)._replace(log_variance=x.sin())

    for guide in (by_classifier(learned, log_probability(1), 1.0), by_image(learned, lambda x0: x0.sum(1), 1.0)):
        made = guide(X, at_ratio(1.0))
        assert torch.equal(made.log_variance, X.sin())
        assert not X.requires_grad
        assert not made.log_variance.requires_grad
