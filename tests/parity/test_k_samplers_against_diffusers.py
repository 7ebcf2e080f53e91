"""LMS, DEIS, DPM-Solver-2, single-step DPM-Solver++ and its SDE against diffusers' schedulers, at equal noise."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from oracle import THEIR_OPTIONS, THEIR_PREDICTION, fed, make_schedule, network, random_noise, start
from torch import Tensor

from ldm.diffusion.denoiser import make_denoiser
from ldm.diffusion.level import Grid
from ldm.diffusion.prediction import make_prediction
from ldm.diffusion.samplers import make_sampler
from ldm.diffusion.samplers.multistep import LinearMultistep
from ldm.diffusion.samplers.step import Sampler

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of NumPy, in their schedulers

# Their module imports torchsde, of which only its own noise needs anything.
sys.modules.setdefault("torchsde", types.ModuleType("torchsde"))
DPMSolverSDEScheduler = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde").DPMSolverSDEScheduler
SCALED = {  # theirs work on x / alpha
    "lms": diffusers.LMSDiscreteScheduler,
    "kdpm2": diffusers.KDPM2DiscreteScheduler,
    "kdpm2-ancestral": diffusers.KDPM2AncestralDiscreteScheduler,
    "dpmpp-sde": DPMSolverSDEScheduler,
}
SPACINGS = ("leading", "trailing", "fractional", "exponential")  # karras: theirs round the timesteps


class Path:
    """A Brownian path over sigma: two increments of each step from its start, at unit variance."""

    def __init__(self, noise: Callable[[Tensor], Tensor]) -> None:
        self.noise, self.first, self.middle = noise, torch.zeros(()), 0.0

    def __call__(self, sigma: Tensor, following: Tensor) -> Tensor:
        if self.middle == 0.0:
            self.first, self.middle = self.noise(start()), float(following)
            return self.first
        share = (sigma - self.middle) / (sigma - following)
        self.middle = 0.0
        return share.sqrt() * self.first + (1 - share).sqrt() * self.noise(start())


def theirs(scheduler: Any, grid: Grid, steps: int) -> Tensor:
    """Return the end of their chain from our start, in our variables."""
    scheduler.set_timesteps(steps)
    noise = random_noise(1)
    if isinstance(scheduler, DPMSolverSDEScheduler):
        scheduler.noise_sampler = Path(noise)
    x, generator = start() / grid.levels[0].alpha, torch.Generator().manual_seed(1)
    made = {"generator": generator} if "Ancestral" in type(scheduler).__name__ else {}
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, **made).prev_sample
    return x * grid.levels[-1].alpha


def end(sampler: Sampler, grid: Grid, prediction: str) -> Tensor:
    denoiser = make_denoiser(network, make_prediction(prediction))
    *_, last = sampler(denoiser, start(), grid, random_noise(1))
    return last.x


def decibels(found: Tensor, expected: Tensor) -> float:
    return float(10 * torch.log10(expected.square().max() / (found - expected).square().mean()))


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SCALED)
def test_samplers_of_k_diffusion(name: str, spacing: str, prediction: str) -> None:
    schedule = make_schedule(set_alpha_to_one=True)
    options = {"timestep_spacing": "linspace"} | THEIR_OPTIONS[spacing]
    scheduler = fed(SCALED[name], schedule, prediction, beta_start=0.00085, beta_end=0.012, **options)
    for steps in (3, 10, 20):
        grid = schedule.grid(steps, spacing)
        assert decibels(end(make_sampler(name), grid, prediction), theirs(scheduler, grid, steps)) > 80


@pytest.mark.parametrize("prediction", THEIR_PREDICTION)
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("dpmpp-2s", diffusers.DPMSolverSinglestepScheduler, {"final_sigmas_type": "zero", "solver_order": 2}),
        ("dpmpp-2s", diffusers.DPMSolverSinglestepScheduler, {"final_sigmas_type": "sigma_min", "solver_order": 2}),
        ("deis", diffusers.DEISMultistepScheduler, {"solver_order": 2}),
        ("deis 3", diffusers.DEISMultistepScheduler, {"solver_order": 3}),
        ("deis 3 whole", diffusers.DEISMultistepScheduler, {"solver_order": 3, "lower_order_final": False}),
    ],
)
def test_samplers_of_dpm_solver(name: str, kind: type, options: dict[str, Any], spacing: str, prediction: str) -> None:
    whole = {"deis 3": True, "deis 3 whole": False}
    sampler = LinearMultistep(3, "log", whole[name]) if name in whole else make_sampler(name)
    schedule = make_schedule(set_alpha_to_one=options.get("final_sigmas_type") == "zero")
    is_singlestep = kind is diffusers.DPMSolverSinglestepScheduler
    spaced = {} if is_singlestep else {"timestep_spacing": spacing}
    if is_singlestep and spacing != "linspace":
        pytest.skip("their class has linspace only")
    for steps in (4, 6, 20):
        scheduler = fed(kind, schedule, prediction, **options, **spaced) if not is_singlestep else None
        if is_singlestep:
            scheduler = kind(prediction_type=THEIR_PREDICTION[prediction], **options)
            scheduler.alphas_cumprod = schedule.alpha**2
            scheduler.alpha_t, scheduler.sigma_t = schedule.alpha, schedule.sigma
            scheduler.lambda_t = (schedule.alpha / schedule.sigma).log()
        scheduler.set_timesteps(steps)
        grid = schedule.grid_at([float(t) for t in scheduler.timesteps])
        expected = theirs_unscaled(scheduler, steps)
        assert decibels(end(sampler, grid, prediction), expected) > 80


def theirs_unscaled(scheduler: Any, steps: int) -> Tensor:
    scheduler.set_timesteps(steps)
    x = start()
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    return x
