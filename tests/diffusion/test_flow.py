"""Rectified flow against closed forms: its path, its shift, its training times."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ldm.config.diffusion import DiffusionConfig, schedule_config, weighting_config
from ldm.diffusion.flow import RectifiedFlow
from ldm.diffusion.loss import DenoisingLoss
from ldm.diffusion.schedule import make_schedule
from ldm.errors import UserError


def flow(**options: object) -> RectifiedFlow:
    schedule = make_schedule(schedule_config(kind="flow", **options))
    assert isinstance(schedule, RectifiedFlow)
    return schedule


def middles(count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def logit(time: Tensor) -> Tensor:
    return torch.log(time / (1 - time))


def test_the_path_is_straight_and_the_network_receives_1000_times_the_time() -> None:
    t = torch.tensor([0.0, 125.0, 333.25, 1000.0], dtype=torch.float64)
    level = flow().level(t, torch.float64)
    torch.testing.assert_close(level.sigma, t / 1000, rtol=1e-15, atol=0)
    torch.testing.assert_close(level.alpha + level.sigma, torch.ones(4, dtype=torch.float64), rtol=1e-15, atol=0)
    assert level.t.tolist() == t.tolist()
    coarse = flow(num_train_timesteps=50).level(t / 20, torch.float64)
    torch.testing.assert_close(coarse.sigma, level.sigma, rtol=1e-15, atol=0)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_the_shift_multiplies_the_ratio_of_noise_to_signal(shift: float) -> None:
    """Esser et al. 2024, eq. 23: an image of shift^2 times as many pixels is as uncertain."""
    plain, shifted = (flow(shift=value).chain().levels for value in (1.0, shift))
    for before, after in list(zip(plain, shifted, strict=True))[1:-1:97]:
        assert after.sigma / after.alpha == pytest.approx(shift * (before.sigma / before.alpha).item(), rel=1e-12)
    assert (shifted[0].alpha, shifted[0].sigma) == (0, 1)
    assert (shifted[-1].alpha, shifted[-1].sigma) == (1, 0)
    assert len(shifted) == 1001


def test_uniform_times_are_the_uniform_numbers_shifted() -> None:
    level = flow().sample(middles(64))
    torch.testing.assert_close(level.sigma, middles(64).float())
    torch.testing.assert_close(level.t, 1000 * level.sigma)
    assert (level.alpha.dtype, level.t.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(
        flow(shift=3.0).sample(middles(64)).sigma, (3 * middles(64) / (1 + 2 * middles(64))).float()
    )


@pytest.mark.parametrize(("mean", "std", "shift"), [(0.0, 1.0, 1.0), (-0.5, 0.7, 1.0), (0.3, 1.2, 3.0)])
def test_the_logits_of_logit_normal_times_are_normal(mean: float, std: float, shift: float) -> None:
    schedule = flow(training_times="logit_normal", logit_mean=mean, logit_std=std, shift=shift)
    logits = logit(schedule.sample(middles(20_000)).sigma.double())
    assert logits.mean().item() == pytest.approx(mean + math.log(shift), abs=1e-3)
    assert logits.std().item() == pytest.approx(std, rel=1e-3)
    at_one_deviation = torch.tensor([0.5 * math.erfc(z / math.sqrt(2)) for z in (1.0, 0.0, -1.0)])  # Phi(-z)
    expected = torch.tensor([mean - std, mean, mean + std]) + math.log(shift)
    torch.testing.assert_close(logit(schedule.sample(at_one_deviation).sigma), expected, rtol=1e-5, atol=1e-5)


def test_logit_normal_times_have_the_published_density() -> None:
    """Esser et al. 2024, eq. 19, against the slope of the times over the uniform numbers, which is its inverse."""
    mean, std, step = 0.2, 0.9, 1e-3
    schedule = flow(training_times="logit_normal", logit_mean=mean, logit_std=std)
    u = torch.tensor([0.1, 0.4, 0.5, 0.9], dtype=torch.float64)
    low, s, high = (schedule.sample(at).sigma.double() for at in (u - step, u, u + step))
    density = torch.exp(-((logit(s) - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi) * s * (1 - s))
    torch.testing.assert_close(2 * step / (high - low), density, rtol=1e-3, atol=0)


@pytest.mark.parametrize("times", ["uniform", "logit_normal"])
@pytest.mark.parametrize("weighting", ["uniform", "min_snr", "soft_min_snr", "p2"])
def test_the_ends_of_the_uniform_numbers_have_finite_weights(times: str, weighting: str) -> None:
    level = flow(training_times=times).sample(torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))
    config = DiffusionConfig(
        prediction="flow", schedule=schedule_config(kind="flow"), weighting=weighting_config(kind=weighting)
    )
    assert (level.sigma > 0).all()
    assert DenoisingLoss(config).weight(level).isfinite().all()


def test_the_grid_falls_evenly_before_its_shift() -> None:
    grid = flow().grid(4)
    torch.testing.assert_close(
        torch.stack([level.sigma for level in grid.levels]),
        torch.tensor([1.0, 0.667, 0.334, 0.001, 0.0], dtype=torch.float64),
        rtol=1e-12,
        atol=1e-15,
    )
    assert grid.initial_scale == 1
    assert [level.sigma.item() for level in flow().grid(1).levels] == [1, 0]


def test_no_steps_raise_an_error() -> None:
    with pytest.raises(UserError, match="0 sampling steps"):
        flow().grid(0)
