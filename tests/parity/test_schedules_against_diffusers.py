"""Sigmoid, rectified flow and the learned variance against the schedulers of diffusers that have them."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ldm.checkpoint.diffusers.pipeline import load_scheduler, save_scheduler
from ldm.checkpoint.diffusers.scheduler_fields import scheduler_to_fields
from ldm.config.diffusion import DiffusionConfig, schedule_config, weighting_config
from ldm.diffusion.denoiser import make_denoiser
from ldm.diffusion.posterior import Posteriors
from ldm.diffusion.prediction import make_prediction
from ldm.diffusion.samplers.first_order import FirstOrder
from ldm.diffusion.schedule import make_schedule

FLOW = DiffusionConfig(
    prediction="flow",
    schedule=schedule_config(kind="flow", shift=3.0, training_times="logit_normal", logit_mean=-0.2, logit_std=1.1),
    offset_noise=0.05,
)
SIGMOID = DiffusionConfig(
    schedule=schedule_config(kind="sigmoid", beta_start=1e-4, beta_end=0.02, set_alpha_to_one=True, steps_offset=0),
    weighting=weighting_config(kind="p2", p2_gamma=0.5),
    input_perturbation=0.1,
)
LEARNED = DiffusionConfig(
    prediction="v",
    learned_variance=True,
    schedule=schedule_config(kind="linear", beta_start=1e-4, beta_end=0.02, set_alpha_to_one=True, steps_offset=0),
)
CONFIGS = {"flow": FLOW, "sigmoid": SIGMOID, "learned": LEARNED}


def random(seed: int = 0) -> Tensor:
    return torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(x: Tensor, t: Tensor) -> Tensor:
    """Stands for a U-Net: bounded, nonlinear, different at every timestep."""
    return torch.tanh(0.7 * x.roll(1, -1) - 0.4 * x + torch.cos(t.double() / 300))


def with_variance(x: Tensor, t: Tensor) -> Tensor:
    """And with a variance that leaves the range between the two fixed ones at times."""
    return torch.cat([network(x, t), 1.2 * torch.sin(3 * x + t / 100)], dim=1)


def close(made: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(made.double(), expected.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.6])
@pytest.mark.parametrize("total", [1000, 50])
def test_the_grid_of_a_flow_is_that_of_diffusers(shift: float, total: int) -> None:
    schedule = make_schedule(schedule_config(kind="flow", shift=shift, num_train_timesteps=total))
    theirs = FlowMatchEulerDiscreteScheduler(num_train_timesteps=total, shift=shift)
    close(torch.stack([level.sigma for level in schedule.chain().levels[:-1]]), theirs.sigmas, 1e-6)
    for steps in (1, 2, 5, 10, 20, 28, 50):
        theirs.set_timesteps(steps)
        grid = schedule.grid(steps)
        close(torch.stack([level.sigma for level in grid.levels]), theirs.sigmas, 1e-6)
        torch.testing.assert_close(grid.t, theirs.timesteps, rtol=1e-6, atol=0)


@pytest.mark.parametrize("steps", [5, 20, 50])
def test_ddim_on_a_flow_is_eulers_step_of_diffusers(steps: int) -> None:
    """Both chains; theirs keeps float32 sigmas, and rounds x to float32 and back."""
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(steps)
    grid, x = make_schedule(FLOW.schedule).grid(steps), random().float()
    made = list(
        FirstOrder()(make_denoiser(network, make_prediction("flow")), random().float().double(), grid, torch.zeros_like)
    )
    for t, step in zip(theirs.timesteps, made, strict=True):
        x = theirs.step(network(x, t).float(), t, x).prev_sample
        close(step.x, x, 1e-5)


def test_sigmoid_is_that_of_diffusers() -> None:
    theirs = DDPMScheduler(beta_schedule="sigmoid", beta_start=1e-4, beta_end=0.02)
    close(make_schedule(SIGMOID.schedule).alpha ** 2, theirs.alphas_cumprod, 1e-5)


@pytest.mark.parametrize("steps", [5, 20, 50, 1000])
@pytest.mark.parametrize("name", ["sigmoid", "learned"])
def test_the_chain_of_the_scheduler_we_write_is_ours(name: str, steps: int) -> None:
    """Sampling with the learned variance, and with sigmoid's fixed one, by a DDPMScheduler made of our fields."""
    config = CONFIGS[name]
    learned, model = config.learned_variance, with_variance if config.learned_variance else network
    theirs = DDPMScheduler.from_config(scheduler_to_fields(config))
    theirs.alphas_cumprod, theirs.one = make_schedule(config.schedule).alpha ** 2, torch.ones((), dtype=torch.float64)
    theirs.set_timesteps(steps)
    grid = make_schedule(config.schedule).grid(steps)
    denoiser = make_denoiser(model, make_prediction(config.prediction), Posteriors(grid) if learned else None)
    ours, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    noise = lambda x: torch.randn(x.shape, dtype=x.dtype, generator=ours)  # noqa: E731
    x = random()
    made = list(FirstOrder(1.0)(denoiser, random(), grid, noise))
    for t, step in zip(theirs.timesteps, made, strict=True):
        x = theirs.step(model(x, t), int(t), x, generator=other).prev_sample
        close(step.x, x, 1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_scheduler_comes_back_and_loads_in_diffusers_with_no_field_unused(name: str, tmp_path: Path) -> None:
    save_scheduler(CONFIGS[name], tmp_path)
    assert load_scheduler(tmp_path) == CONFIGS[name]
    fields = scheduler_to_fields(CONFIGS[name])
    theirs, unused = getattr(diffusers, fields["_class_name"]).from_pretrained(tmp_path, return_unused_kwargs=True)
    assert all(field.startswith("_") for field in unused)
    for field, value in fields.items():
        if not field.startswith("_"):
            assert theirs.config[field] == value, field
    theirs.save_pretrained(tmp_path / "again")
    assert load_scheduler(tmp_path / "again") == CONFIGS[name]


def test_the_schedulers_of_published_flow_models_are_read(tmp_path: Path) -> None:
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(tmp_path)  # as Stable Diffusion 3's
    assert load_scheduler(tmp_path).schedule == schedule_config(kind="flow", shift=3.0)
    assert load_scheduler(tmp_path).prediction == "flow"
