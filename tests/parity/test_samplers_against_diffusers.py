"""The first-order sampler against diffusers' DDIM and DDPM schedulers, brought to float64 on their side too."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from oracle import network, random_noise, start
from torch import Tensor

from ldm.config.diffusion import ScheduleConfig, schedule_config
from ldm.diffusion.denoiser import Denoised, make_denoiser
from ldm.diffusion.level import Grid, Level
from ldm.diffusion.prediction import make_prediction
from ldm.diffusion.samplers.first_order import FirstOrder
from ldm.diffusion.schedule import make_schedule

THEIR_KIND = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
THEIR_PREDICTION = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
SPACINGS = ("leading", "trailing", "linspace")
STEPS = (5, 10, 20, 50)


def double_betas(config: ScheduleConfig) -> Tensor:
    def signal(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    total = config.num_train_timesteps
    start, end = getattr(config, "beta_start", 0.00085), getattr(config, "beta_end", 0.012)
    betas = {
        "linear": [start + (end - start) * i / (total - 1) for i in range(total)],
        "scaled_linear": [(start**0.5 + (end**0.5 - start**0.5) * i / (total - 1)) ** 2 for i in range(total)],
        "cosine": [min(1 - signal((i + 1) / total) / signal(i / total), 0.999) for i in range(total)],
    }[config.kind]
    return torch.tensor(betas, dtype=torch.float64)


def in_double(scheduler: Any, config: ScheduleConfig) -> Any:
    """Replace its float32 tables, so that only the formulas are compared."""
    betas = double_betas(config)
    if config.zero_terminal_snr:
        betas = rescale_zero_terminal_snr(betas)
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    scheduler.one = torch.ones((), dtype=torch.float64)
    scheduler.final_alpha_cumprod = scheduler.one if config.set_alpha_to_one else scheduler.alphas_cumprod[0]
    return scheduler


def oracle(kind: type, config: ScheduleConfig, prediction: str, **options: Any) -> Any:
    scheduler = kind(
        num_train_timesteps=config.num_train_timesteps,
        beta_start=getattr(config, "beta_start", 0.00085),
        beta_end=getattr(config, "beta_end", 0.012),
        beta_schedule=THEIR_KIND[config.kind],
        rescale_betas_zero_snr=config.zero_terminal_snr,
        prediction_type=THEIR_PREDICTION[prediction],
        timestep_spacing=config.spacing,
        steps_offset=config.steps_offset,
        clip_sample=False,
        **options,
    )
    return in_double(scheduler, config)


def ddim(config: ScheduleConfig, prediction: str) -> DDIMScheduler:
    return oracle(DDIMScheduler, config, prediction, set_alpha_to_one=config.set_alpha_to_one)


def ours(config: ScheduleConfig, prediction: str, steps: int, sampler: FirstOrder) -> Tensor:
    """x after each step, (steps, ...)."""
    denoiser = make_denoiser(network, make_prediction(prediction))
    return torch.stack(
        [step.x for step in sampler(denoiser, start(), make_schedule(config).grid(steps), random_noise(1))]
    )


def theirs_ddim(config: ScheduleConfig, prediction: str, steps: int, eta: float) -> Tensor:
    """Their chain, each step led to the next timestep of their own list.

    Their DDIM strides by T // steps instead, which is the same for leading and for trailing where steps divides T.
    """
    scheduler, x, noise, found = ddim(config, prediction), start(), random_noise(1), []
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.tolist()
    for t, following in itertools.zip_longest(timesteps, timesteps[1:], fillvalue=-1):
        if config.spacing == "linspace":
            scheduler.num_inference_steps = Fraction(config.num_train_timesteps, t - following)
        output = network(x, torch.tensor(t))
        x = scheduler.step(output, t, x, eta=eta, variance_noise=noise(x) if eta else None).prev_sample
        found.append(x)
    return torch.stack(found)


def theirs_ddpm(config: ScheduleConfig, prediction: str, steps: int, variance: str) -> Tensor:
    scheduler = oracle(DDPMScheduler, config, prediction, variance_type=variance)
    scheduler.set_timesteps(steps)
    x, generator, found = start(), torch.Generator().manual_seed(1), []
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), int(t), x, generator=generator).prev_sample
        found.append(x)
    return torch.stack(found)


def assert_same(x: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    assert x.isfinite().all()
    torch.testing.assert_close(x, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", THEIR_KIND)
@pytest.mark.parametrize("zero", [False, True])
def test_tables_are_those_of_diffusers(kind: str, zero: bool) -> None:
    config = schedule_config(kind=kind, zero_terminal_snr=zero)
    schedule = make_schedule(config)
    scheduler = ddim(config, "v")
    torch.testing.assert_close(schedule.alpha**2, scheduler.alphas_cumprod, rtol=1e-10, atol=1e-13)
    in_float32 = DDIMScheduler(
        beta_start=getattr(config, "beta_start", 0.00085),
        beta_end=getattr(config, "beta_end", 0.012),
        beta_schedule=THEIR_KIND[kind],
        rescale_betas_zero_snr=zero,
    )
    torch.testing.assert_close(schedule.alpha.float() ** 2, in_float32.alphas_cumprod, rtol=2e-4, atol=2e-7)


@pytest.mark.parametrize("kind", THEIR_KIND)
def test_zero_terminal_snr_ends_at_exactly_no_signal_and_keeps_the_first_level(kind: str) -> None:
    plain = make_schedule(schedule_config(kind=kind))
    zero = make_schedule(schedule_config(kind=kind, zero_terminal_snr=True))
    assert zero.alpha[-1] == 0
    assert zero.sigma[-1] == 1
    assert zero.alpha[0] == pytest.approx(plain.alpha[0].item(), rel=1e-14)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("offset", [0, 1])
def test_timesteps_are_those_of_diffusers(spacing: str, offset: int) -> None:
    config = schedule_config(spacing=spacing, steps_offset=offset)
    scheduler = ddim(config, "eps")
    for steps in (1, 2, 5, 7, 20, 30, 48, 50, 250, 999):
        scheduler.set_timesteps(steps)
        assert make_schedule(config).grid(steps).t.tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("prediction", THEIR_PREDICTION)
@pytest.mark.parametrize("t", [999, 500, 21, 19])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_one_ddim_step_is_that_of_diffusers(prediction: str, t: int, eta: float) -> None:
    config = schedule_config(set_alpha_to_one=True)
    schedule, scheduler = make_schedule(config), ddim(config, prediction)
    scheduler.set_timesteps(50)
    output, noise = network(start(), torch.tensor(t)), start(2)
    expected = scheduler.step(output, t, start(), eta=eta, variance_noise=noise if eta else None).prev_sample
    final = schedule.grid(1).levels[-1]
    following = schedule.level(torch.tensor(t - 20), torch.float64) if t >= 20 else final
    grid = Grid((schedule.level(torch.tensor(t), torch.float64), following))
    (step,) = FirstOrder(eta)(make_denoiser(network, make_prediction(prediction)), start(), grid, lambda x: noise)
    assert_same(step.x, expected, 1e-10)


@pytest.mark.parametrize("prediction", THEIR_PREDICTION)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_chain_is_that_of_diffusers(prediction: str, spacing: str, steps: int, eta: float) -> None:
    config = schedule_config(spacing=spacing)
    assert_same(ours(config, prediction, steps, FirstOrder(eta)), theirs_ddim(config, prediction, steps, eta))


@pytest.mark.parametrize("kind", THEIR_KIND)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("to_one", [False, True])
def test_ddim_chain_is_that_of_diffusers_for_every_schedule_and_end(kind: str, offset: int, to_one: bool) -> None:
    config = schedule_config(kind=kind, steps_offset=offset, set_alpha_to_one=to_one)
    assert_same(ours(config, "v", 20, FirstOrder(1.0)), theirs_ddim(config, "v", 20, 1.0))


@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_ddim_chain_from_zero_signal_is_that_of_diffusers(prediction: str, eta: float, spacing: str) -> None:
    config = schedule_config(zero_terminal_snr=True, spacing=spacing, set_alpha_to_one=True)
    assert make_schedule(config).grid(20).levels[0].alpha == 0
    assert_same(ours(config, prediction, 20, FirstOrder(eta)), theirs_ddim(config, prediction, 20, eta))


@pytest.mark.parametrize("prediction", THEIR_PREDICTION)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [*STEPS, 999])
def test_eta_1_is_ddpm_with_the_small_variance(prediction: str, spacing: str, steps: int) -> None:
    config = schedule_config(spacing=spacing, set_alpha_to_one=True)
    expected = theirs_ddpm(config, prediction, steps, "fixed_small")
    assert_same(ours(config, prediction, steps, FirstOrder(1.0)), expected)


@pytest.mark.parametrize("prediction", THEIR_PREDICTION)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", STEPS)
def test_the_large_variance_is_that_of_ddpm(prediction: str, spacing: str, steps: int) -> None:
    """But for the last step, where theirs adds noise unless t is 0, as it is with leading and linspace."""
    config = schedule_config(spacing=spacing, steps_offset=0, set_alpha_to_one=True)
    expected = theirs_ddpm(config, prediction, steps, "fixed_large")
    alike = steps - (spacing == "trailing")
    assert_same(ours(config, prediction, steps, FirstOrder(1.0, "large"))[:alike], expected[:alike])


def test_float32_stays_with_float64_along_the_chain() -> None:
    """Compared with the float64 chain, fifty float32 steps lose no more than float32 itself does."""
    config = schedule_config()
    denoiser = make_denoiser(lambda x, t: network(x, t).to(x.dtype), make_prediction("eps"))
    *_, last = FirstOrder()(denoiser, start().float(), make_schedule(config).grid(50), random_noise(1))
    assert last.x.dtype == torch.float32
    torch.testing.assert_close(last.x.double(), ours(config, "eps", 50, FirstOrder())[-1], rtol=2e-5, atol=2e-5)


def test_a_denoiser_hands_on_the_networks_own_output() -> None:
    level = Level(*(torch.tensor(value, dtype=torch.float64) for value in (0.6, 0.8)), torch.tensor(7))
    denoised = make_denoiser(network, make_prediction("v"))(start(), level)
    assert isinstance(denoised, Denoised)
    assert torch.equal(denoised.output, network(start(), torch.tensor(7)))
    assert_same(denoised.x0, 0.6 * start() - 0.8 * denoised.output, 1e-12)
