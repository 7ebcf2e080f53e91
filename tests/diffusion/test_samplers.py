"""What holds for every sampler: exact at both ends, as many calls as documented, nothing kept between walks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from closed_forms import gaussian, mixture, smooth_grid
from torch import Tensor

from ldm.config.diffusion import schedule_config
from ldm.diffusion.denoiser import Denoised
from ldm.diffusion.level import Grid, Level
from ldm.diffusion.samplers import make_sampler
from ldm.diffusion.samplers.first_order import FirstOrder
from ldm.diffusion.samplers.heun import heun
from ldm.diffusion.samplers.inversion import invert
from ldm.diffusion.schedule import make_schedule
from ldm.errors import UserError
from ldm.registry import SAMPLERS

DETERMINISTIC = ("ddim", "euler", "heun", "plms", "dpmpp-2m", "unipc")
SPACINGS = ("trailing", "linspace", "fractional", "karras", "exponential")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def noise_of(seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator).to(x)


def whole_grid(steps: int, spacing: str = "trailing", **options: Any) -> Grid:
    """From no signal at all to no noise at all."""
    return make_schedule(schedule_config(set_alpha_to_one=True, zero_terminal_snr=True, **options)).grid(steps, spacing)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", ["scaled_linear", "cosine"])
def test_every_sampler_ends_exactly_at_a_image_that_never_changes(name: str, spacing: str, kind: str) -> None:
    """From zero signal; those without noise of their own also keep the noise that they began with, all the way."""
    image, x = random(2, 3, 4, 4), random(2, 3, 4, 4, seed=1)
    for steps in (1, 2, 3, 10):
        grid = whole_grid(steps, spacing, kind=kind)
        if spacing == "linspace" and steps == 1:
            continue  # it consists of timestep 0
        assert grid.levels[0].alpha == 0
        walk = list(SAMPLERS[name](lambda x, level: Denoised(image, image), x, grid, noise_of(0)))
        assert len(walk) == steps
        for step in walk if name in DETERMINISTIC else ():
            torch.testing.assert_close(step.x, step.level.noisy(image, x), rtol=1e-9, atol=1e-9)
        if name == "lcm" and spacing != "trailing":
            continue  # at t = 0 its boundary condition gives back the input
        tolerance = 1e-6 if name == "lcm" else 1e-11  # that is its boundary condition at t = 99
        torch.testing.assert_close(walk[-1].x, image, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("to_one", [False, True])
def test_every_sampler_is_finite_from_zero_signal_and_over_steps_of_no_length(name: str, to_one: bool) -> None:
    """Without `set_alpha_to_one` these grids end with timestep 0 twice."""
    schedule = make_schedule(schedule_config(zero_terminal_snr=True, set_alpha_to_one=to_one))
    for spacing in ("linspace", "fractional", "karras", "exponential"):
        for steps in (2, 3, 20):
            walk = SAMPLERS[name](mixture, random(50), schedule.grid(steps, spacing), noise_of(0))
            assert all(step.x.isfinite().all() for step in walk)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "heun", "dpmpp-2m", "dpmpp-2m-sde", "unipc"])
def test_the_last_step_to_no_noise_is_the_image_last_seen(name: str) -> None:
    *_, last = SAMPLERS[name](mixture, random(50), whole_grid(10), noise_of(0))
    assert torch.equal(last.x, last.denoised.x0)


MIDDLE = ("kdpm2", "kdpm2-ancestral", "dpmpp-sde")  # these also call the network between levels


def calls(name: str, grid: Grid) -> int:
    seen: list[float] = []

    def denoiser(x: Tensor, level: Level) -> Denoised:
        seen.append(level.t.item())
        return gaussian(x, level)

    list(SAMPLERS[name](denoiser, random(5), grid, noise_of(0)))
    levels = grid.t.tolist()
    assert set(seen) == set(levels) if name not in MIDDLE else set(seen) >= set(levels)  # never at the last level
    return len(seen)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_network_is_called_as_often_as_documented(name: str) -> None:
    signal = make_schedule(schedule_config(set_alpha_to_one=True))
    for steps in (1, 2, 10):
        twice = dict.fromkeys(("heun", *MIDDLE), 2 * steps - 1)
        expected = (twice | {"plms": steps + (steps > 1)}).get(name, steps)
        assert calls(name, signal.grid(steps)) == expected
        expected = dict.fromkeys(("heun", *MIDDLE), max(1, 2 * steps - 2)).get(name, steps)
        assert calls(name, whole_grid(steps)) == expected


@pytest.mark.parametrize("name", SAMPLERS)
def test_two_walks_of_one_sampler_do_not_meet(name: str) -> None:
    """What a sampler remembers of earlier steps it keeps in the walk."""
    grid = make_schedule(schedule_config()).grid(8)
    starts = (random(6), random(6, seed=1))
    alone = [[step.x for step in SAMPLERS[name](mixture, x, grid, noise_of(0))] for x in starts]
    both = (SAMPLERS[name](mixture, x, grid, noise_of(0)) for x in starts)
    for index, steps in enumerate(zip(*both, strict=True)):
        assert all(torch.equal(step.x, xs[index]) for step, xs in zip(steps, alone, strict=True))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    grid, x = make_schedule(schedule_config()).grid(8), random(6)
    no_noise = lambda x: torch.zeros_like(x)  # noqa: E731
    *_, together = SAMPLERS[name](mixture, x, grid, no_noise)
    *_, alone = SAMPLERS[name](mixture, x[2:3], grid, no_noise)
    torch.testing.assert_close(together.x[2:3], alone.x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_float32_stays_with_float64_and_is_not_changed(name: str) -> None:
    grid, x = make_schedule(schedule_config(set_alpha_to_one=True)).grid(20), random(50).float()
    *_, double = SAMPLERS[name](mixture, x.double(), grid, noise_of(0))
    *_, single = SAMPLERS[name](mixture, x, grid, noise_of(0))
    assert single.x.dtype == torch.float32
    torch.testing.assert_close(single.x.double(), double.x, rtol=1e-4, atol=1e-4)


def test_each_step_is_yielded_with_its_level() -> None:
    grid = make_schedule(schedule_config()).grid(5)
    for sampler in SAMPLERS.values():
        assert [step.level for step in sampler(mixture, random(3), grid, noise_of(0))] == list(grid.levels[1:])


def test_eulers_method_in_k_diffusions_variables_is_ddim() -> None:
    """dx = (x - x0) / sigma dsigma for x / alpha and sigma / alpha (Karras et al. 2022, algorithm 1)."""
    grid, y = smooth_grid(10), random(20)
    steps = FirstOrder()(mixture, grid.levels[0].alpha * y, grid, noise_of(0))
    for (level, following), step in zip(grid.steps(), steps, strict=True):
        sigma, lower = level.sigma / level.alpha, following.sigma / following.alpha
        y = y + (y - mixture(level.alpha * y, level).x0) / sigma * (lower - sigma)
        torch.testing.assert_close(step.x, following.alpha * y, rtol=1e-12, atol=1e-12)


def test_heun_is_the_published_algorithm() -> None:
    """Karras et al. 2022, algorithm 1 without churn, in its own variables."""
    grid, y = smooth_grid(10), random(20)
    steps = heun(mixture, grid.levels[0].alpha * y, grid, noise_of(0))
    for index, ((level, following), step) in enumerate(zip(grid.steps(), steps, strict=True), start=1):
        sigma, lower = level.sigma / level.alpha, following.sigma / following.alpha
        slope = (y - mixture(level.alpha * y, level).x0) / sigma
        ahead = y + slope * (lower - sigma)
        if index < len(grid):
            slope = (slope + (ahead - mixture(following.alpha * ahead, following).x0) / lower) / 2
        y = y + slope * (lower - sigma)
        torch.testing.assert_close(step.x, following.alpha * y, rtol=1e-12, atol=1e-12)


def test_inversion_from_a_clean_image_to_no_signal_is_finite_and_leads_back() -> None:
    image, errors = torch.linspace(-1.5, 1.5, 21, dtype=torch.float64), []
    for steps in (50, 100, 200):
        grid = whole_grid(steps)
        walk = list(invert(mixture, image, grid))
        assert [step.level for step in walk] == list(reversed(grid.levels[:-1]))
        *_, back = FirstOrder()(mixture, walk[-1].x, grid, noise_of(0))
        errors.append((back.x - image).abs().mean().item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.05


@pytest.mark.parametrize(
    ("name", "eta", "message"),
    [
        ("dimm", None, "no sampler 'dimm': did you mean 'ddim'?"),
        ("heun", 0.0, "sampler heun has no eta: that is an option of sampler ddim"),
        ("unipc", 0.5, "sampler unipc has no eta"),
        ("euler-ancestral", 0.5, "sampler euler-ancestral has eta 1, not 0.5: for other values use sampler ddim"),
        ("euler", 1.0, "sampler euler has eta 0, not 1"),
        ("ddim", -0.1, "eta -0.1 is not between 0"),
        ("ddim", math.nan, "eta nan is not between 0"),
    ],
)
def test_unknown_samplers_and_unsupported_etas_raise_an_error(name: str, eta: float | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_sampler(name, eta)


def test_eta_is_ddims() -> None:
    assert make_sampler("ddim", 0.3) == FirstOrder(0.3)
    assert make_sampler("ddpm", 1.0) == make_sampler("ddpm") == make_sampler("ddim", 1.0)
    assert make_sampler("ddpm-large") == FirstOrder(1.0, "large")
