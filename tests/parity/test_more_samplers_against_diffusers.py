"""Every sampler but DDIM and DDPM, which have a file of their own, against diffusers' scheduler of the same name.

Each walks the levels of its spacing with our tables on both sides. Theirs round those levels to float32; where the
rest of a scheduler works in float64, it is given them in float64, and the whole chain agrees to 1e-6. Euler and
DPM-Solver++ round x to float32 in every step: there single steps agree to 1e-6 and the chain to 1e-4.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from oracle import (
    STEPS,
    THEIR_OPTIONS,
    THEIR_PREDICTION,
    error,
    fed,
    make_schedule,
    network,
    ours,
    random_noise,
    ratios,
    start,
    theirs,
)
from torch import Tensor

from ldm.checkpoint.diffusers.pipeline import load_scheduler
from ldm.diffusion.denoiser import make_denoiser
from ldm.diffusion.level import Grid
from ldm.diffusion.prediction import make_prediction
from ldm.diffusion.samplers import make_sampler
from ldm.diffusion.samplers.dpm_solver import DPMSolver2M
from ldm.diffusion.samplers.inversion import invert
from ldm.diffusion.samplers.plms import PLMS
from ldm.diffusion.samplers.unipc import UniPC
from ldm.diffusion.schedule import TableSchedule
from ldm.registry import SCHEDULES

MULTISTEP_SPACINGS = ("leading", "trailing", "linspace", "karras", "exponential")


def float32_noise(seed: int) -> Any:
    """Numbers that do not change where theirs round them."""
    draw = random_noise(seed)
    return lambda x: draw(x.float()).to(x)


# --- Euler and Euler-ancestral: float32 inside ------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", THEIR_PREDICTION)
@pytest.mark.parametrize("spacing", THEIR_OPTIONS)
@pytest.mark.parametrize("steps", STEPS)
def test_euler(prediction: str, spacing: str, steps: int) -> None:
    schedule = make_schedule(set_alpha_to_one=True)
    scheduler = fed(EulerDiscreteScheduler, schedule, prediction, **THEIR_OPTIONS[spacing])
    grid = schedule.grid(steps, spacing)
    scheduler.set_timesteps(steps)
    found = ours(make_sampler("euler"), grid, prediction, scheduler.timesteps)
    assert error(found, theirs(scheduler, grid, found)) < 1e-6
    scheduler.set_timesteps(steps)
    assert error(found, theirs(scheduler, grid)) < 1e-4


@pytest.mark.parametrize("prediction", ["eps", "v"])  # theirs knows no other
@pytest.mark.parametrize("spacing", ["leading", "trailing", "fractional"])
@pytest.mark.parametrize("steps", STEPS)
def test_euler_ancestral(prediction: str, spacing: str, steps: int) -> None:
    schedule = make_schedule(set_alpha_to_one=True)
    scheduler = fed(EulerAncestralDiscreteScheduler, schedule, prediction, **THEIR_OPTIONS[spacing])
    grid = schedule.grid(steps, spacing)
    scheduler.set_timesteps(steps)
    found = ours(make_sampler("euler-ancestral"), grid, prediction, scheduler.timesteps)
    assert error(found, theirs(scheduler, grid, found, generator=torch.Generator().manual_seed(1))) < 1e-6
    scheduler.set_timesteps(steps)
    assert error(found, theirs(scheduler, grid, generator=torch.Generator().manual_seed(1))) < 1e-4


# --- Heun: float64 given its levels in float64 ------------------------------------------------------------------------


def theirs_heun(scheduler: Any, grid: Grid) -> list[Tensor]:
    levels = [grid.levels[0], *(level for level in grid.levels[1:-1] for _ in range(2)), grid.levels[-1]]
    scheduler.sigmas = torch.stack([level.sigma / level.alpha for level in levels])
    x, found = start() / grid.levels[0].alpha, [start()]
    for index, t in enumerate(scheduler.timesteps):
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
        if index % 2 or index == len(scheduler.timesteps) - 1:
            found.append(x * grid.levels[len(found)].alpha)
    return found


@pytest.mark.parametrize("prediction", THEIR_PREDICTION)
@pytest.mark.parametrize("spacing", THEIR_OPTIONS)
@pytest.mark.parametrize("steps", STEPS)
def test_heun(prediction: str, spacing: str, steps: int) -> None:
    schedule = make_schedule(set_alpha_to_one=True)
    scheduler = fed(HeunDiscreteScheduler, schedule, prediction, **THEIR_OPTIONS[spacing])
    scheduler.set_timesteps(steps)
    grid = schedule.grid(steps, spacing)
    found = ours(make_sampler("heun"), grid, prediction, scheduler.timesteps[::2])
    assert error(found, theirs_heun(scheduler, grid)) < 1e-6


# --- DPM-Solver++ and UniPC -------------------------------------------------------------------------------------------


def multistep(kind: type, schedule: TableSchedule, prediction: str, spacing: str, steps: int, **options: Any) -> Any:
    """Their scheduler, and the grid of its levels."""
    end = "zero" if schedule.config.set_alpha_to_one else "sigma_min"
    options |= THEIR_OPTIONS.get(spacing, {"timestep_spacing": spacing})
    scheduler = fed(kind, schedule, prediction, final_sigmas_type=end, **options)
    scheduler.set_timesteps(steps)
    if spacing in ("leading", "linspace"):
        return scheduler, schedule.grid_at(scheduler.timesteps.tolist())
    return scheduler, schedule.grid(steps, spacing)


@pytest.mark.parametrize("prediction", THEIR_PREDICTION)
@pytest.mark.parametrize("spacing", MULTISTEP_SPACINGS)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("stochastic", [False, True])
def test_dpm_solver_2m(prediction: str, spacing: str, steps: int, stochastic: bool) -> None:
    options = {"algorithm_type": "sde-dpmsolver++" if stochastic else "dpmsolver++"}
    schedule = make_schedule(set_alpha_to_one=True)
    scheduler, grid = multistep(DPMSolverMultistepScheduler, schedule, prediction, spacing, steps, **options)
    sampler = make_sampler("dpmpp-2m-sde" if stochastic else "dpmpp-2m")
    found = ours(sampler, grid, prediction, scheduler.timesteps, float32_noise(1))
    for forced, tolerance in ((found, 1e-6), (None, 1e-4)):
        scheduler, _ = multistep(DPMSolverMultistepScheduler, schedule, prediction, spacing, steps, **options)
        noise = {"variance_noise": float32_noise(1)} if stochastic else {}
        assert error(found, theirs(scheduler, grid, forced, **noise)) < tolerance


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("stochastic", [False, True])
def test_dpm_solver_2m_down_to_the_first_timestep(steps: int, lower: bool, stochastic: bool) -> None:
    """Ten steps end with one of first order if asked to, twenty never do."""
    kind, options = DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++" if stochastic else "dpmsolver++"}
    scheduler, grid = multistep(kind, make_schedule(), "v", "trailing", steps, lower_order_final=lower, **options)
    sampler = DPMSolver2M(stochastic, lower_order_final=lower)
    found = ours(sampler, grid, "v", scheduler.timesteps, float32_noise(1))
    noise = {"variance_noise": float32_noise(1)} if stochastic else {}
    assert error(found, theirs(scheduler, grid, found, **noise)) < 1e-6
    other = ours(DPMSolver2M(stochastic, lower_order_final=not lower), grid, "v", scheduler.timesteps, float32_noise(1))
    assert (error(found, other) > 1e-5) is (steps < 15)


@pytest.mark.parametrize("prediction", THEIR_PREDICTION)
@pytest.mark.parametrize("spacing", MULTISTEP_SPACINGS)
@pytest.mark.parametrize("steps", STEPS)
def test_unipc(prediction: str, spacing: str, steps: int) -> None:
    schedule = make_schedule(set_alpha_to_one=True)
    scheduler, grid = multistep(UniPCMultistepScheduler, schedule, prediction, spacing, steps)
    scheduler.sigmas = ratios(grid)
    found = ours(make_sampler("unipc"), grid, prediction, scheduler.timesteps)
    assert error(found, theirs(scheduler, grid)) < 1e-6


@pytest.mark.parametrize("lower", [True, False])
def test_unipc_down_to_the_first_timestep(lower: bool) -> None:
    scheduler, grid = multistep(UniPCMultistepScheduler, make_schedule(), "v", "trailing", 20, lower_order_final=lower)
    scheduler.sigmas = ratios(grid)
    found = ours(UniPC(lower_order_final=lower), grid, "v", scheduler.timesteps)
    assert error(found, theirs(scheduler, grid)) < 1e-6
    assert error(found, ours(UniPC(lower_order_final=not lower), grid, "v", scheduler.timesteps)) > 1e-5


# --- PLMS, LCM: float64 -----------------------------------------------------------------------------------------------


def theirs_plms(scheduler: PNDMScheduler, grid: Grid, output: Any = network) -> list[Tensor]:
    """Their chain, each step led to the next timestep of their own list, which linspace misses by their stride."""
    x, found = start(), [start()]
    walk = [*(int(t) for t in grid.t), -1]
    walk = walk if len(walk) == 2 else [walk[0], walk[1], *walk[1:]]  # the first step looks ahead and comes again
    for index, t in enumerate(walk[:-1]):
        stride = walk[0] - t if index == 1 else t - walk[index + 1]
        scheduler.num_inference_steps = Fraction(1000, stride if stride else 1)
        x = scheduler.step(output(x, torch.tensor(t)), t, x).prev_sample
        found.append(x)
    return [found[0], *found[2:]]


@pytest.mark.parametrize("prediction", ["eps", "v"])  # theirs knows no other, and mixes what the network puts out
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("to_one", [False, True])
def test_plms(prediction: Literal["eps", "v"], spacing: str, steps: int, to_one: bool) -> None:
    schedule = make_schedule(set_alpha_to_one=to_one)
    scheduler = fed(PNDMScheduler, schedule, prediction, skip_prk_steps=True, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    grid = schedule.grid(steps, spacing)
    assert scheduler.timesteps.tolist() == [*grid.t[:2].tolist(), *grid.t[1:].tolist()]
    assert error(ours(PLMS(prediction), grid, prediction), theirs_plms(scheduler, grid)) < 1e-6


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_plms_of_ours_mixes_noises_whatever_the_network_regresses(prediction: str) -> None:
    """The same network with another prediction takes the path that theirs takes for eps."""
    schedule = make_schedule()
    grid = schedule.grid(10, "trailing")

    def noise(x: Tensor, t: Tensor) -> Tensor:
        level = schedule.level(t, torch.float64)
        return make_prediction(prediction).to_eps(x, network(x, t), level)

    scheduler = fed(PNDMScheduler, schedule, "eps", skip_prk_steps=True, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    assert error(ours(make_sampler("plms"), grid, prediction), theirs_plms(scheduler, grid, noise)) < 1e-6


@pytest.mark.parametrize("prediction", THEIR_PREDICTION)
@pytest.mark.parametrize("steps", [1, 2, 4, *STEPS])
def test_lcm(prediction: str, steps: int) -> None:
    schedule = make_schedule()
    scheduler = fed(LCMScheduler, schedule, prediction)
    scheduler.set_timesteps(steps)
    grid = schedule.grid_at(scheduler.timesteps.tolist())
    x, expected, generator = start(), [start()], torch.Generator().manual_seed(1)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), int(t), x, generator=generator).prev_sample
        expected.append(x)
    assert error(ours(make_sampler("lcm"), grid, prediction), expected) < 1e-6


# --- no signal at the start -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["v", "x0"])
@pytest.mark.parametrize("spacing", ["trailing", "karras"])
@pytest.mark.parametrize("name", ["euler", "dpmpp-2m", "dpmpp-2m-sde", "unipc"])
def test_chains_from_their_stand_in_for_zero_signal(prediction: str, spacing: str, name: str) -> None:
    schedule = make_schedule(set_alpha_to_one=True, zero_terminal_snr=True)
    kinds = {"euler": EulerDiscreteScheduler, "unipc": UniPCMultistepScheduler}
    options = {"algorithm_type": "sde-dpmsolver++"} if name == "dpmpp-2m-sde" else {}
    kind = kinds.get(name, DPMSolverMultistepScheduler)
    scheduler, grid = multistep(kind, schedule, prediction, spacing, 20, **options)
    if name == "unipc":
        scheduler.sigmas = ratios(grid)
    found = ours(make_sampler(name), grid, prediction, scheduler.timesteps, float32_noise(1))
    noise = {"variance_noise": float32_noise(1)} if name == "dpmpp-2m-sde" else {}
    assert error(found, theirs(scheduler, grid, **noise)) < (1e-6 if name == "unipc" else 1e-4)


# --- inversion --------------------------------------------------------------------------------------------------------


def inverted(schedule: TableSchedule, grid: Grid, prediction: str) -> list[Tensor]:
    denoiser = make_denoiser(network, make_prediction(prediction))
    return [start(), *(step.x for step in invert(denoiser, start(), grid))]


def theirs_inverted(schedule: TableSchedule, prediction: str, spacing: str, steps: int) -> list[Tensor]:
    scheduler = fed(DDIMInverseScheduler, schedule, prediction, timestep_spacing=spacing, clip_sample=False)
    scheduler.set_timesteps(steps)
    x, found = start(), [start()]
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), int(t), x).prev_sample
        found.append(x)
    return found


@pytest.mark.parametrize("prediction", THEIR_PREDICTION)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", STEPS)
def test_inversion(prediction: str, spacing: str, steps: int) -> None:
    schedule = make_schedule(set_alpha_to_one=prediction == "eps")
    found = inverted(schedule, schedule.grid(steps, spacing), prediction)
    assert error(found, theirs_inverted(schedule, prediction, spacing, steps)) < 1e-6


def test_inversion_of_a_clean_image_differs_in_where_v_is_looked_at() -> None:
    """Theirs takes v as if at the clean level, ours at the noisier one that the network receives; x0 has no other."""
    schedule = make_schedule(set_alpha_to_one=True)
    grid = schedule.grid(50, "trailing")
    first = grid.levels[-2]
    v = network(start(), first.t)
    their_first = theirs_inverted(schedule, "v", "trailing", 50)[1]
    torch.testing.assert_close(their_first, first.noisy(start(), v), rtol=1e-9, atol=1e-9)
    our_first = inverted(schedule, grid, "v")[1]
    noise = first.alpha * v + first.sigma * start()
    torch.testing.assert_close(our_first, first.noisy(start(), noise), rtol=1e-9, atol=1e-9)


# --- TCD: DDIM without its noise, to timestep 0 -----------------------------------------------------------------------


@pytest.mark.parametrize("prediction", THEIR_PREDICTION)
@pytest.mark.parametrize("steps", [1, 5, 10])
def test_a_tcd_folder_ends_at_timestep_0(prediction: str, steps: int, tmp_path: Path) -> None:
    scheduler = TCDScheduler(prediction_type=THEIR_PREDICTION[prediction])
    scheduler.save_config(tmp_path)
    config = load_scheduler(tmp_path)
    grid = SCHEDULES[config.schedule.kind](config.schedule).grid(steps)
    scheduler.set_timesteps(steps)
    x = start()
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x, eta=0.0).prev_sample
    assert error(ours(make_sampler("ddim"), grid, prediction)[-1:], [x]) < 1e-4
