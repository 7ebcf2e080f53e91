"""Timesteps and levels of every spacing against the schedulers of diffusers that have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from oracle import THEIR_OPTIONS, fed, make_schedule, ratios

from ldm.checkpoint.diffusers.scheduler_fields import scheduler_from_fields, scheduler_to_fields
from ldm.config.diffusion import DiffusionConfig, schedule_config
from ldm.diffusion.level import Grid
from ldm.errors import UserError

STEPS = (5, 10, 20, 50)
EULER = [(EulerDiscreteScheduler, spacing) for spacing in THEIR_OPTIONS]
EULER += [(EulerAncestralDiscreteScheduler, spacing) for spacing in ("leading", "trailing", "fractional")]
HEUN = [(HeunDiscreteScheduler, spacing) for spacing in THEIR_OPTIONS]
MULTISTEP = (DPMSolverMultistepScheduler, UniPCMultistepScheduler)


def assert_levels(grid: Grid, sigmas: torch.Tensor) -> None:
    """Theirs are rounded to float32, after interpolation at timesteps in float32."""
    torch.testing.assert_close(ratios(grid), sigmas.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("kind", "spacing"), EULER)
@pytest.mark.parametrize("schedule_kind", ["scaled_linear", "cosine"])
def test_eulers_levels_and_times(kind: type, spacing: str, schedule_kind: str) -> None:
    schedule = make_schedule(kind=schedule_kind, set_alpha_to_one=True)
    scheduler = fed(kind, schedule, "eps", **THEIR_OPTIONS[spacing])
    for steps in (*STEPS, 7, 30):
        scheduler.set_timesteps(steps)
        grid = schedule.grid(steps, spacing)
        torch.testing.assert_close(grid.t.float(), scheduler.timesteps.float(), rtol=1e-6, atol=1e-4)
        assert_levels(grid, scheduler.sigmas)


@pytest.mark.parametrize(("kind", "spacing"), HEUN)
def test_heuns_levels_and_times_are_there_twice(kind: type, spacing: str) -> None:
    schedule = make_schedule(set_alpha_to_one=True)
    scheduler = fed(kind, schedule, "eps", **THEIR_OPTIONS[spacing])
    for steps in STEPS:
        scheduler.set_timesteps(steps)
        grid = schedule.grid(steps, spacing)
        torch.testing.assert_close(grid.t.float(), scheduler.timesteps[::2], rtol=1e-6, atol=1e-4)
        assert_levels(grid, torch.cat([scheduler.sigmas[:-1:2], scheduler.sigmas[-1:]]))


@pytest.mark.parametrize("kind", MULTISTEP)
@pytest.mark.parametrize("spacing", ["trailing", "karras", "exponential"])
@pytest.mark.parametrize("zero", [False, True])
def test_levels_of_dpm_solver_and_unipc(kind: type, spacing: str, zero: bool) -> None:
    """Their levels are ours; the timestep that the network receives is an integer."""
    schedule = make_schedule(set_alpha_to_one=True, zero_terminal_snr=zero)
    scheduler = fed(kind, schedule, "v", **THEIR_OPTIONS[spacing])
    for steps in STEPS:
        scheduler.set_timesteps(steps)
        grid = schedule.grid(steps, spacing)
        assert_levels(grid, scheduler.sigmas)
        assert ((grid.t - scheduler.timesteps).abs() <= (1 if spacing == "exponential" else 0.5)).all()


@pytest.mark.parametrize("kind", MULTISTEP)
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_dpm_solver_and_unipc_take_the_grid_of_one_step_more_without_its_last(kind: type, spacing: str) -> None:
    schedule = make_schedule(set_alpha_to_one=True)
    scheduler = fed(kind, schedule, "v", timestep_spacing=spacing)
    for steps in (*STEPS, 7):
        scheduler.set_timesteps(steps)
        grid = schedule.grid(steps + 1, spacing)
        assert scheduler.timesteps.tolist() == grid.t[:-1].tolist()
        assert_levels(schedule.grid_at(grid.t[:-1].tolist()), scheduler.sigmas)


def test_an_explicit_list_is_theirs_too() -> None:
    schedule, timesteps = make_schedule(set_alpha_to_one=True), [999, 850, 500, 123, 7]
    scheduler = fed(EulerDiscreteScheduler, schedule, "eps")
    scheduler.set_timesteps(timesteps=timesteps)
    assert schedule.grid_at(timesteps).t.tolist() == scheduler.timesteps.tolist()
    assert_levels(schedule.grid_at(timesteps), scheduler.sigmas)
    scheduler.set_timesteps(timesteps=[999, 850.25, 500.5])
    assert_levels(schedule.grid_at([999, 850.25, 500.5]), scheduler.sigmas)


@pytest.mark.parametrize("spacing", THEIR_OPTIONS)
@pytest.mark.parametrize("to_one", [True, False])
def test_the_end_is_theirs(spacing: str, to_one: bool) -> None:
    schedule = make_schedule(set_alpha_to_one=to_one)
    final = "zero" if to_one else "sigma_min"
    scheduler = fed(EulerDiscreteScheduler, schedule, "eps", final_sigmas_type=final, **THEIR_OPTIONS[spacing])
    scheduler.set_timesteps(10)
    assert_levels(schedule.grid(10, spacing), scheduler.sigmas)


CONFIGS = [
    DiffusionConfig(schedule=schedule_config(spacing="karras", set_alpha_to_one=True)),
    DiffusionConfig(
        schedule=schedule_config(spacing="exponential", kind="cosine", zero_terminal_snr=True), prediction="v"
    ),
    DiffusionConfig(schedule=schedule_config(spacing="fractional", steps_offset=0), prediction="x0"),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_spacings_between_timesteps_come_back_from_eulers_fields(config: DiffusionConfig) -> None:
    fields = scheduler_to_fields(config)
    theirs, unused = EulerDiscreteScheduler.from_config(fields, return_unused_kwargs=True)
    assert all(name.startswith("_") for name in unused)
    assert scheduler_from_fields(dict(theirs.config) | {"_class_name": "EulerDiscreteScheduler"}, Path("x")) == config


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"])
def test_schedulers_between_timesteps_are_understood(name: str) -> None:
    theirs = getattr(diffusers, name)(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)
    expected = DiffusionConfig(schedule=schedule_config(spacing="fractional", set_alpha_to_one=True))
    assert scheduler_from_fields(dict(theirs.config) | {"_class_name": name}, Path("x")) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"_class_name": "DDIMScheduler", "use_karras_sigmas": True, "clip_sample": False},
            "use_karras_sigmas is True",
        ),
        ({"_class_name": "EulerDiscreteScheduler", "final_sigmas_type": "one"}, "final_sigmas_type is 'one'"),
        ({"_class_name": "EulerDiscreteScheduler", "sigma_max": 9.0}, "sigma_max"),
        (
            {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "timestep_spacing": "leading"},
            "use_karras_sigmas only with timestep_spacing linspace",
        ),
    ],
)
def test_an_unsupported_value_raises_an_error_that_names_it(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        scheduler_from_fields(fields, Path("x"))
