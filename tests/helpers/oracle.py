"""Run diffusers' schedulers with ldm's tables next to ldm's samplers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.config.diffusion import schedule_config
from ldm.diffusion.denoiser import make_denoiser
from ldm.diffusion.level import Grid
from ldm.diffusion.prediction import make_prediction
from ldm.diffusion.samplers.step import Sampler
from ldm.diffusion.schedule import TableSchedule
from ldm.registry import SCHEDULES

STEPS = (5, 10, 20, pytest.param(50, marks=pytest.mark.slow))
THEIR_PREDICTION = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
THEIR_OPTIONS: dict[str, dict[str, Any]] = {
    "leading": {"timestep_spacing": "leading"},
    "trailing": {"timestep_spacing": "trailing"},
    "fractional": {"timestep_spacing": "linspace"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
}
WEIGHT = torch.randn(4, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(7)) / 12

Noise = Callable[[Tensor], Tensor]


def network(x: Tensor, t: Tensor) -> Tensor:
    """Replace a U-Net: random, bounded, nonlinear, different at every timestep."""
    return torch.tanh(torch.nn.functional.conv2d(x.double(), WEIGHT, padding=1) + torch.cos(t.double() / 300)).to(x)


def start(seed: int = 0) -> Tensor:
    return torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_noise(seed: int) -> Noise:
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator)


def make_schedule(**options: Any) -> TableSchedule:
    """Return ldm's schedule; with zero terminal SNR the last alpha is 2^-12, as in diffusers."""
    config = schedule_config(**options)
    schedule = SCHEDULES[config.kind](config)
    if schedule.config.zero_terminal_snr:
        schedule.alpha[-1], schedule.sigma[-1] = 2**-12, (1 - 2**-24) ** 0.5
    return schedule


def fed(kind: type, schedule: TableSchedule, prediction: str, **options: Any) -> Any:
    """Return a scheduler of diffusers with ldm's alpha^2 in float64."""
    scheduler = kind(prediction_type=THEIR_PREDICTION[prediction], steps_offset=schedule.config.steps_offset, **options)
    scheduler.alphas_cumprod = schedule.alpha**2
    final = torch.ones((), dtype=torch.float64) if schedule.config.set_alpha_to_one else scheduler.alphas_cumprod[0]
    scheduler.final_alpha_cumprod = scheduler.initial_alpha_cumprod = final
    return scheduler


def ratios(grid: Grid) -> Tensor:
    """Return sigma / alpha of all levels, which is diffusers' sigma, in float64."""
    return torch.stack([level.sigma / level.alpha for level in grid.levels])


def ours(
    sampler: Sampler, grid: Grid, prediction: str, network_t: Tensor | None = None, noise: Noise | None = None
) -> list[Tensor]:
    """Return x at every level of the grid; `network_t` replaces the grid's t as input of the network."""
    names = dict(zip(grid.t.tolist(), grid.t if network_t is None else network_t, strict=True))
    denoiser = make_denoiser(lambda x, t: network(x, names[t.item()]), make_prediction(prediction))
    return [start(), *(step.x for step in sampler(denoiser, start(), grid, noise or random_noise(1)))]


def theirs(scheduler: Any, grid: Grid, forced: list[Tensor] | None = None, **options: Any) -> list[Tensor]:
    """Return diffusers' x at every level in ldm's variables, each step from the previous x or from `forced` ones.

    Schedulers whose inputs are to be scaled work on x / alpha.
    """
    scaled = "Euler" in type(scheduler).__name__
    found = [start()]
    for index, ((level, following), t) in enumerate(zip(grid.steps(), scheduler.timesteps, strict=True)):
        x = found[-1] if forced is None else forced[index]
        sample = scheduler.scale_model_input(x / level.alpha if scaled else x, t)
        torch.testing.assert_close(sample, x, rtol=1e-6, atol=1e-6)
        made = {name: option(x) if callable(option) else option for name, option in options.items()}
        output = network(x, t)
        x = scheduler.step(output, t, x / level.alpha if scaled else x, **made).prev_sample
        found.append(x * following.alpha if scaled else x)
    return found


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Return the maximum difference of any step, relative to the maximum value of that step."""
    assert all(x.isfinite().all() for x in found)
    pairs = zip(found, expected, strict=True)
    return max(((x - other).abs().max() / other.abs().max()).item() for x, other in pairs)
