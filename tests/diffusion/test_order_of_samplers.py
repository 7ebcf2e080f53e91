"""How fast each sampler converges to the exact probability flow, and whether the stochastic ones draw from the data."""

from __future__ import annotations

import pytest
import torch
from closed_forms import (
    DEVIATION,
    MEAN,
    gaussian,
    gaussian_end,
    mixture,
    order,
    runge_kutta_end,
    smooth_grid,
)
from torch import Tensor

from ldm.config.diffusion import schedule_config
from ldm.diffusion.denoiser import Denoised, Denoiser
from ldm.diffusion.level import Grid, Level
from ldm.diffusion.samplers import make_sampler
from ldm.diffusion.samplers.dpm_solver import DPMSolver2M
from ldm.diffusion.samplers.first_order import FirstOrder
from ldm.diffusion.samplers.heun import heun
from ldm.diffusion.samplers.inversion import invert
from ldm.diffusion.samplers.plms import PLMS
from ldm.diffusion.samplers.step import Sampler
from ldm.diffusion.samplers.unipc import UniPC
from ldm.diffusion.schedule import make_schedule

X = torch.linspace(-2, 2, 41, dtype=torch.float64)
STEPS = (80, 160, 320, 640)

ORDERS = [
    ("ddim", 1),
    ("euler", 1),
    ("heun", 2),
    ("plms", 2),
    ("dpmpp-2m", 2),
    ("unipc", 2),  # its last step is of first order; the next test leaves that out
]


def no_noise(x: Tensor) -> Tensor:
    raise AssertionError("a deterministic sampler asked for noise")


def end(sampler: Sampler, denoiser: Denoiser, grid: Grid) -> Tensor:
    *_, last = sampler(denoiser, X, grid, no_noise)
    return last.x


def measured_order(sampler: Sampler, denoiser: Denoiser, expected: Tensor, grids: list[Grid]) -> float:
    errors = [(end(sampler, denoiser, grid) - expected).abs().max().item() for grid in grids]
    return order(tuple(len(grid) for grid in grids), errors)


def test_the_reference_is_the_closed_form_where_there_is_one() -> None:
    grid = smooth_grid(1)
    reference = runge_kutta_end(gaussian, X, grid.levels[0], grid.levels[-1])
    torch.testing.assert_close(reference, gaussian_end(X, *grid.levels), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "expected"), ORDERS)
def test_the_order_on_a_gaussian_is_the_theoretical_one(name: str, expected: int) -> None:
    grids = [smooth_grid(steps, ends=(1.0, -1.0)) for steps in STEPS]
    exact = gaussian_end(X, grids[0].levels[0], grids[0].levels[-1])
    assert measured_order(make_sampler(name), gaussian, exact, grids) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(("name", "expected"), ORDERS)
def test_the_order_on_a_mixture_is_the_theoretical_one(name: str, expected: int) -> None:
    grids = [smooth_grid(steps) for steps in STEPS]
    exact = runge_kutta_end(mixture, X, grids[0].levels[0], grids[0].levels[-1])
    assert measured_order(make_sampler(name), mixture, exact, grids) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("denoiser", [gaussian, mixture])
def test_unipcs_corrector_makes_its_order_3_where_no_step_is_lowered(denoiser: Denoiser) -> None:
    grids = [smooth_grid(steps) for steps in STEPS]
    exact = runge_kutta_end(denoiser, X, grids[0].levels[0], grids[0].levels[-1])
    assert measured_order(UniPC(lower_order_final=False), denoiser, exact, grids) == pytest.approx(3, abs=0.2)


def test_plms_has_order_3_on_equal_steps_of_sigma_which_its_weights_suppose() -> None:
    """Of order 4 are the later steps alone: the first two have an error of third order, which stays in the end."""
    grids = [smooth_grid(steps, spacing=lambda ratio: ratio, ends=(2.0, 1.0)) for steps in STEPS]
    exact = runge_kutta_end(mixture, X, grids[0].levels[0], grids[0].levels[-1])
    assert measured_order(PLMS(), mixture, exact, grids) == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize("denoiser", [gaussian, mixture])
def test_plms_on_outputs_v_as_diffusers_has_it_has_order_1_and_is_worse_than_on_noises(denoiser: Denoiser) -> None:
    grids = [smooth_grid(steps) for steps in (20, *STEPS)]
    exact = runge_kutta_end(denoiser, X, grids[0].levels[0], grids[0].levels[-1])
    assert measured_order(PLMS("v"), denoiser, exact, grids[1:]) == pytest.approx(1, abs=0.1)
    for grid in grids:
        errors = [(end(PLMS(mixed), denoiser, grid) - exact).abs().max().item() for mixed in ("v", "eps")]
        assert errors[0] > 10 * errors[1]


@pytest.mark.parametrize("sampler", [heun, DPMSolver2M(), UniPC()])
def test_twenty_steps_of_higher_order_beat_twenty_of_ddim(sampler: Sampler) -> None:
    grid = smooth_grid(20)
    exact = runge_kutta_end(mixture, X, grid.levels[0], grid.levels[-1])
    errors = [(end(walk, mixture, grid) - exact).abs().max().item() for walk in (sampler, FirstOrder())]
    assert errors[0] < errors[1] / 4


@pytest.mark.parametrize("denoiser", [gaussian, mixture])
def test_the_error_of_inversion_falls_at_first_order(denoiser: Denoiser) -> None:
    """There and back by DDIM, and there against the exact noise."""
    there, back = [], []
    for steps in STEPS:
        grid = smooth_grid(steps)
        exact = runge_kutta_end(denoiser, X, grid.levels[-1], grid.levels[0])
        *_, noise = invert(denoiser, X, grid)
        there.append((noise.x - exact).abs().max().item())
        *_, again = FirstOrder()(denoiser, noise.x, grid, no_noise)
        back.append((again.x - X).abs().max().item())
    assert order(STEPS, there) == pytest.approx(1, abs=0.1)
    assert order(STEPS, back) == pytest.approx(1, abs=0.1)


# --- stochastic samplers ----------------------------------------------------------------------------------------------

SAMPLES = 20_000


def sample(sampler: Sampler, denoiser: Denoiser, grid: Grid) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    noise = lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator)  # noqa: E731
    *_, last = sampler(denoiser, noise(torch.empty(SAMPLES, dtype=torch.float64)), grid, noise)
    return last.x


def assert_the_datas_moments(x: Tensor) -> None:
    """Within four standard errors of mean and standard deviation."""
    assert x.mean().item() == pytest.approx(MEAN, abs=4 * DEVIATION / SAMPLES**0.5)
    assert x.std().item() == pytest.approx(DEVIATION, abs=4 * DEVIATION / (2 * SAMPLES) ** 0.5)


@pytest.mark.parametrize(
    ("name", "steps"), [("ddpm", 1000), ("ddpm-large", 1000), ("euler-ancestral", 1000), ("dpmpp-2m-sde", 500)]
)
def test_samples_of_stochastic_samplers_have_the_datas_mean_and_variance(name: str, steps: int) -> None:
    schedule = make_schedule(schedule_config(spacing="trailing", set_alpha_to_one=True, zero_terminal_snr=True))
    assert_the_datas_moments(sample(make_sampler(name), gaussian, schedule.grid(steps)))


def test_consistency_samples_of_the_exact_consistency_function_have_them_too() -> None:
    """What a distilled network stands for: the end of the probability flow in one call."""
    schedule = make_schedule(schedule_config(spacing="trailing", set_alpha_to_one=True, zero_terminal_snr=True))

    def consistent(x: Tensor, level: Level) -> Denoised:
        x0 = gaussian_end(x, level, schedule.grid(1).levels[-1])
        return Denoised(x0, x0)

    for steps in (1, 4):
        assert_the_datas_moments(sample(make_sampler("lcm"), consistent, schedule.grid(steps)))
