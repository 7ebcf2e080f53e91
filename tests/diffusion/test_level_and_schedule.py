from __future__ import annotations

import itertools
import math

import pytest
import torch

from ldm.config.diffusion import schedule_config
from ldm.diffusion.level import Level
from ldm.diffusion.schedule import make_schedule
from ldm.errors import UserError

KINDS = ("linear", "scaled_linear", "cosine")


def double(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zero", [False, True])
def test_every_level_preserves_variance_and_signal_only_falls(kind: str, zero: bool) -> None:
    schedule = make_schedule(schedule_config(kind=kind, zero_terminal_snr=zero))
    torch.testing.assert_close(schedule.alpha**2 + schedule.sigma**2, torch.ones(1000, dtype=torch.float64))
    assert (schedule.alpha.diff() < 0).all()
    assert schedule.alpha.dtype == torch.float64


def test_stable_diffusions_table_by_hand() -> None:
    alpha_bar = 1.0
    schedule = make_schedule(schedule_config())
    for t in range(1000):
        alpha_bar *= 1 - (math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * t / 999) ** 2
        assert schedule.alpha[t].item() == pytest.approx(math.sqrt(alpha_bar), rel=1e-12)
    assert alpha_bar == pytest.approx(0.0047, rel=0.01)  # the known terminal signal of Stable Diffusion


def test_noisy_is_q_of_x_t_given_x_0() -> None:
    """One draw with the closed form has the mean and variance of t + 1 single steps of sqrt(1 - beta), sqrt(beta)."""
    schedule = make_schedule(schedule_config(kind="linear"))
    betas = torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64)
    mean, variance = double(1.0), double(0.0)
    for t in range(400):
        mean, variance = mean * (1 - betas[t]).sqrt(), variance * (1 - betas[t]) + betas[t]
    level = schedule.level(torch.tensor(399), torch.float64)
    x0 = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(level.noisy(x0, torch.zeros_like(x0)), mean * x0, rtol=1e-12, atol=0)
    torch.testing.assert_close(level.noisy(0 * x0, torch.ones_like(x0))[0, 0, 0, 0] ** 2, variance, rtol=1e-12, atol=0)


def test_levels_of_a_batch_act_on_their_own_sample() -> None:
    schedule = make_schedule(schedule_config())
    t = torch.tensor([0, 500, 999])
    x0, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    together = schedule.level(t).noisy(x0, noise)
    assert together.dtype == torch.float32
    for i in range(3):
        alone = schedule.level(t[i], torch.float64).noisy(x0[i], noise[i])
        torch.testing.assert_close(together[i], alone, rtol=1e-6, atol=1e-6)


def test_snr_is_the_ratio_of_squares() -> None:
    assert Level(double(0.6), double(0.8), torch.tensor(3)).snr.item() == pytest.approx(0.5625)
    assert Level(double(1.0), double(0.0), torch.tensor(-1)).snr.item() == math.inf


def test_uniform_numbers_reach_every_timestep_equally() -> None:
    schedule = make_schedule(schedule_config(num_train_timesteps=10))
    middles = (torch.arange(100) + 0.5) / 100
    assert schedule.sample(middles).t.bincount().tolist() == [10] * 10
    almost_one = torch.tensor([torch.finfo(torch.float32).eps / -2 + 1])
    assert schedule.sample(almost_one).t.tolist() == [9]
    assert schedule.sample(torch.zeros(1)).t.tolist() == [0]


@pytest.mark.parametrize("to_one", [False, True])
def test_a_grid_ends_without_noise_or_at_the_first_timestep(to_one: bool) -> None:
    schedule = make_schedule(schedule_config(set_alpha_to_one=to_one))
    grid = schedule.grid(20)
    assert (len(grid), len(grid.levels), grid.initial_scale) == (20, 21, 1.0)
    final = grid.levels[-1]
    assert final.alpha == (1 if to_one else schedule.alpha[0])
    assert final.sigma == (0 if to_one else schedule.sigma[0])


def test_steps_of_a_grid_join() -> None:
    grid = make_schedule(schedule_config(spacing="linspace")).grid(7)
    steps = list(grid.steps())
    assert len(steps) == 7
    assert all(end is start for (_, end), (start, _) in itertools.pairwise(steps))


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_more_steps_than_the_schedule_has_raise_an_error(steps: int) -> None:
    with pytest.raises(UserError, match=f"{steps} sampling steps.*1 to 1000"):
        make_schedule(schedule_config()).grid(steps)


def test_an_offset_that_leaves_the_table_raises_an_error() -> None:
    assert len(make_schedule(schedule_config(steps_offset=0)).grid(1000)) == 1000
    with pytest.raises(UserError, match="steps_offset 1 start at timestep 1000 of 0 to 999"):
        make_schedule(schedule_config(steps_offset=1)).grid(1000)
