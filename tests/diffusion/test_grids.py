from __future__ import annotations

import math

import pytest
import torch

from ldm.config.diffusion import schedule_config
from ldm.diffusion.grids import SPACINGS
from ldm.diffusion.level import Grid
from ldm.diffusion.schedule import make_schedule
from ldm.errors import UserError

BETWEEN = ("fractional", "karras", "exponential")


def ratios(grid: Grid) -> torch.Tensor:
    return torch.stack([level.sigma / level.alpha for level in grid.levels[:-1]])


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("zero", [False, True])
def test_levels_of_every_spacing_fall_and_preserve_variance(spacing: str, kind: str, zero: bool) -> None:
    schedule = make_schedule(schedule_config(kind=kind, zero_terminal_snr=zero, steps_offset=0))
    for steps in (1, 2, 5, 50, 1000):
        grid = schedule.grid(steps, spacing)
        assert len(grid) == steps
        crowded = spacing == "beta" and steps > 5 and (zero or kind == "cosine")  # at the ends, beyond float32
        assert (grid.t.diff() < 0).all() or (crowded and (grid.t.diff() <= 0).all())
        assert (ratios(grid).diff() < 0).all() or (crowded and (ratios(grid).diff() <= 0).all())
        for level in grid.levels:
            assert level.alpha.dtype == torch.float64
            assert (level.alpha**2 + level.sigma**2).item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_default_spacing_is_the_schedules_own(spacing: str) -> None:
    own, plain = make_schedule(schedule_config(spacing=spacing)), make_schedule(schedule_config())
    assert own.grid(7).levels == plain.grid(7, spacing).levels


@pytest.mark.parametrize("spacing", BETWEEN)
@pytest.mark.parametrize("zero", [False, True])
def test_the_ends_are_the_tables_own(spacing: str, zero: bool) -> None:
    schedule = make_schedule(schedule_config(kind="cosine", zero_terminal_snr=zero))
    grid = schedule.grid(10, spacing)
    first, last = grid.levels[0], grid.levels[-2]
    assert (first.t.item(), last.t.item()) == (999, 0)
    assert (first.alpha, first.sigma) == (schedule.alpha[999], schedule.sigma[999])
    assert (last.alpha, last.sigma) == (schedule.alpha[0], schedule.sigma[0])
    assert schedule.grid(1, spacing).t.tolist() == [999]


def test_karras_is_equation_5() -> None:
    schedule = make_schedule(schedule_config())
    highest, lowest = ((schedule.sigma[t] / schedule.alpha[t]).item() for t in (999, 0))
    for i, ratio in enumerate(ratios(schedule.grid(8, "karras")).tolist()):
        expected = (highest ** (1 / 7) + i / 7 * (lowest ** (1 / 7) - highest ** (1 / 7))) ** 7
        assert ratio == pytest.approx(expected, rel=1e-12)


def test_exponential_is_even_in_the_logarithm() -> None:
    steps = ratios(make_schedule(schedule_config()).grid(9, "exponential")).log().diff()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-10, atol=0)


@pytest.mark.parametrize("spacing", ["karras", "exponential"])
def test_t_between_timesteps_is_linear_in_log_sigma(spacing: str) -> None:
    schedule = make_schedule(schedule_config())
    table = (schedule.sigma / schedule.alpha).log()
    grid = schedule.grid(11, spacing)
    for t, ratio in zip(grid.t.tolist(), ratios(grid).tolist(), strict=True):
        below = min(int(t), 998)
        expected = table[below] + (t - below) * (table[below + 1] - table[below])
        assert math.log(ratio) == pytest.approx(expected.item(), abs=1e-5)  # t is float32


def test_sigma_at_a_fractional_t_is_linear_between_its_neighbours() -> None:
    schedule = make_schedule(schedule_config())
    grid = schedule.grid_at([500.25, 3.5])
    table = schedule.sigma / schedule.alpha
    expected = torch.stack([0.75 * table[500] + 0.25 * table[501], (table[3] + table[4]) / 2])
    torch.testing.assert_close(ratios(grid), expected, rtol=1e-12, atol=0)
    assert grid.t.tolist() == [500.25, 3.5]


def test_fractional_spreads_evenly_where_linspace_rounds() -> None:
    schedule = make_schedule(schedule_config())
    assert schedule.grid(5, "fractional").t.tolist() == [999, 749.25, 499.5, 249.75, 0]
    assert schedule.grid(5, "linspace").t.tolist() == [999, 749, 500, 250, 0]


def test_next_to_zero_signal_levels_stay_finite() -> None:
    schedule = make_schedule(schedule_config(kind="cosine", zero_terminal_snr=True))
    first, between, second = schedule.grid_at([999, 998.5, 998]).levels[:3]
    assert first.alpha == 0
    assert first.alpha < between.alpha < second.alpha


def test_a_list_of_timesteps_is_taken_as_it_is() -> None:
    schedule = make_schedule(schedule_config(spacing="trailing"))
    assert schedule.grid_at([999, 749, 499, 249]).levels == schedule.grid(4).levels
    assert schedule.grid_at([7.0]).t.dtype == torch.int64


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        ([], "give at least one"),
        ([3, 3], "timesteps 3, 3: give at least one, in decreasing order"),
        ([3, 700], "in decreasing order"),
        ([3, -0.5], "none below 0"),
        ([math.nan], "timesteps nan"),
        ([math.inf, 3], "timesteps inf, 3"),
        ([1000, 3], "timestep 1000 is out of range: the model was trained with 0 to 999"),
    ],
)
def test_a_list_that_cannot_be_walked_raises_an_error(timesteps: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_schedule(schedule_config()).grid_at(timesteps)


def test_an_unknown_spacing_raises_an_error() -> None:
    with pytest.raises(
        UserError, match="unknown spacing 'karas': choose one of leading, trailing, linspace, fractional, karras"
    ):
        make_schedule(schedule_config()).grid(10, "karas")
