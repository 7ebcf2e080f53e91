"""q(x_t | x_0) and q(x_s | x_t, x_0) against the formulas of the DDPM paper, and the variance learned between."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ldm.config.diffusion import DiffusionConfig, schedule_config
from ldm.diffusion.bound import bound_term
from ldm.diffusion.denoiser import Denoised, make_denoiser
from ldm.diffusion.guidance import classifier_free
from ldm.diffusion.level import Level
from ldm.diffusion.loss import VarianceLoss
from ldm.diffusion.posterior import Posteriors
from ldm.diffusion.prediction import make_prediction
from ldm.diffusion.samplers.first_order import FirstOrder
from ldm.diffusion.schedule import make_schedule

KINDS = ("linear", "scaled_linear", "cosine", "sigmoid")
ALL = torch.arange(1000)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_hand(kind: str) -> Tensor:
    """Betas by the formula of each paper, one at a time."""
    start, end = 0.00085, 0.012

    def signal(t: int) -> float:
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    formulas = {
        "linear": lambda i: start + (end - start) * i / 999,
        "scaled_linear": lambda i: (start**0.5 + (end**0.5 - start**0.5) * i / 999) ** 2,
        "cosine": lambda i: min(1 - signal(i + 1) / signal(i), 0.999),
        "sigmoid": lambda i: start + (end - start) / (1 + math.exp(6 - 12 * i / 999)),
    }
    return torch.tensor([formulas[kind](i) for i in range(1000)], dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_noisy_is_q_of_x_t_given_x_0_at_every_timestep(kind: str) -> None:
    """Ho et al. 2020, eq. 4."""
    bar, x0, noise = (1 - by_hand(kind)).cumprod(0), random(1000, 2), random(1000, 2, seed=1)
    made = make_schedule(schedule_config(kind=kind)).level(ALL, torch.float64).noisy(x0, noise)
    expected = bar.sqrt()[:, None] * x0 + (1 - bar).sqrt()[:, None] * noise
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-12)


def test_the_last_beta_of_cosine_is_cut_at_its_cap_and_no_other() -> None:
    bar = make_schedule(schedule_config(kind="cosine")).alpha ** 2
    betas = 1 - bar[1:] / bar[:-1]
    assert betas[-1].item() == pytest.approx(0.999, rel=1e-12)
    assert (betas[:-1] < 0.999).all()


def test_sigmoid_rises_from_its_first_beta_to_its_last_and_is_halfway_in_the_middle() -> None:
    bar = (
        make_schedule(schedule_config(kind="sigmoid", num_train_timesteps=1001, beta_start=0.01, beta_end=0.03)).alpha
        ** 2
    )
    betas = 1 - bar[1:] / bar[:-1]
    assert betas[499].item() == pytest.approx(0.02, rel=1e-9)  # of timestep 500
    assert 1 - bar[0].item() == pytest.approx(0.01 + 0.02 / (1 + math.exp(6)), rel=1e-9)
    assert betas[-1].item() == pytest.approx(0.03 - 0.02 / (1 + math.exp(6)), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zero", [False, True])
def test_posterior_mean_and_variance_are_those_of_ddpm_at_every_timestep(kind: str, zero: bool) -> None:
    """Ho et al. 2020, eq. 7; both variances of section 3.2."""
    schedule = make_schedule(schedule_config(kind=kind, zero_terminal_snr=zero))
    bar = schedule.alpha**2 if zero else (1 - by_hand(kind)).cumprod(0)
    before = torch.cat([bar.new_ones(1), bar[:-1]])
    beta = 1 - bar / before
    x, x0 = random(1000, 2), random(1000, 2, seed=1)
    posterior = Posteriors(schedule.chain()).at(schedule.level(ALL, torch.float64))
    mean = (before.sqrt() * beta / (1 - bar))[:, None] * x0
    mean = mean + ((1 - beta).sqrt() * (1 - before) / (1 - bar))[:, None] * x
    torch.testing.assert_close(posterior.mean(x, x0), mean, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(posterior.large.exp(), beta, rtol=1e-8, atol=0)
    small = (1 - before) / (1 - bar) * beta
    torch.testing.assert_close(posterior.small[1:].exp(), small[1:], rtol=1e-8, atol=0)
    assert posterior.small[0] == posterior.small[1]
    assert posterior.last.tolist() == [True] + [False] * 999


@pytest.mark.parametrize("config", [schedule_config(kind="flow", shift=3.0), schedule_config(kind="cosine")])
def test_the_posterior_is_bayes_rule_between_any_two_levels(config: schedule_config) -> None:
    """q(x_s | x_t, x_0) ~ q(x_t | x_s) q(x_s | x_0): precisions add, and means by precision (Kingma et al. 2021)."""
    grid = make_schedule(config).grid(7)
    posteriors, x, x0 = Posteriors(grid), random(5), random(5, seed=1)
    for level, following in list(grid.steps())[1:-1]:
        ratio = level.alpha / following.alpha
        noise = level.sigma**2 - ratio**2 * following.sigma**2
        precision = ratio**2 / noise + 1 / following.sigma**2
        mean = (ratio / noise * x + following.alpha / following.sigma**2 * x0) / precision
        posterior = posteriors.at(level)
        torch.testing.assert_close(posterior.mean(x, x0), mean, rtol=1e-9, atol=1e-12)
        assert posterior.small.exp().item() == pytest.approx(1 / precision.item(), rel=1e-9)


# --- the learned variance ---------------------------------------------------------------------------------------------

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
BAR = (1 - BETAS).cumprod(0)
BEFORE = torch.cat([BAR.new_ones(1), BAR[:-1]])
SMALL = BETAS * (1 - BEFORE) / (1 - BAR)
CLIPPED = torch.cat([SMALL[1:2], SMALL[1:]]).log()
LEARNED = DiffusionConfig(
    learned_variance=True, schedule=schedule_config(kind="linear", beta_start=1e-4, beta_end=0.02)
)
T = torch.tensor([0, 1, 30, 400, 999])


def shaped(values: Tensor) -> Tensor:
    return values[T].view(-1, 1, 1, 1)


def improved_ddpm(eps: Tensor, variance: Tensor, x0: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Log variance (eq. 15) and terms of L_vlb in bits per dimension, from betas, for a network that predicts eps."""
    share = (variance + 1) / 2
    log_variance = share * shaped(BETAS.log()) + (1 - share) * shaped(CLIPPED)
    x = shaped(BAR).sqrt() * x0 + (1 - shaped(BAR)).sqrt() * noise
    seen = (x - (1 - shaped(BAR)).sqrt() * eps) / shaped(BAR).sqrt()
    of_x0 = shaped(BEFORE).sqrt() * shaped(BETAS) / (1 - shaped(BAR))
    of_x = (1 - shaped(BETAS)).sqrt() * (1 - shaped(BEFORE)) / (1 - shaped(BAR))
    true, mean, true_log = of_x0 * x0 + of_x * x, of_x0 * seen + of_x * x, shaped(CLIPPED)
    kl = 0.5 * (log_variance - true_log - 1 + (true_log - log_variance).exp() + (true - mean) ** 2 / log_variance.exp())
    nll = -torch.distributions.Normal(mean, log_variance.exp().sqrt()).log_prob(x0)
    terms = torch.where(T.view(-1, 1, 1, 1) == 0, nll, kl)
    return log_variance, terms.flatten(1).mean(1) / math.log(2)


def outputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noise that is nearly right, a variance, image and noise."""
    noise = random(5, 3, 4, 4, seed=3)
    return noise + 0.1 * random(5, 3, 4, 4), random(5, 3, 4, 4, seed=1), random(5, 3, 4, 4, seed=2), noise


def test_log_variance_and_bound_are_those_of_improved_ddpm() -> None:
    eps, variance, x0, noise = outputs()
    schedule = make_schedule(LEARNED.schedule)
    level = schedule.level(T, torch.float64)
    posterior = Posteriors(schedule.chain()).at(level)
    expected, terms = improved_ddpm(eps, variance, x0, noise)
    torch.testing.assert_close(posterior.learned(variance), expected, rtol=1e-10, atol=0)
    seen = make_prediction("eps").to_x0(level.noisy(x0, noise), eps, level)
    made = bound_term(posterior, Denoised(seen, eps, posterior.learned(variance)), x0, "gaussian")
    torch.testing.assert_close(made, terms, rtol=1e-7, atol=0)


def test_the_hybrid_loss_adds_a_thousandth_of_the_whole_bound() -> None:
    eps, variance, x0, noise = outputs()
    level = make_schedule(LEARNED.schedule).level(T)
    made = VarianceLoss(LEARNED)(eps.float(), variance.float(), x0.float(), noise.float(), level)
    assert made.dtype == torch.float32
    expected = 0.001 * 1000 * improved_ddpm(eps, variance, x0, noise)[1]
    torch.testing.assert_close(made.double(), expected, rtol=2e-4, atol=0)


def test_the_bound_teaches_the_variance_alone() -> None:
    eps, variance, x0, noise = (tensor.float().requires_grad_() for tensor in outputs())
    VarianceLoss(LEARNED)(eps, variance, x0, noise, make_schedule(LEARNED.schedule).level(T)).sum().backward()
    assert eps.grad is None
    assert variance.grad is not None
    assert (variance.grad.abs().flatten(1).amax(1) > 0).all()


def test_steps_that_leave_out_timesteps_have_the_betas_of_the_shorter_process() -> None:
    """Nichol and Dhariwal 2021, eq. 19."""
    config = LEARNED.schedule.model_copy(update={"set_alpha_to_one": True, "steps_offset": 0})
    grid = make_schedule(config).grid(50)
    bar = BAR[grid.t.flip(0)]
    before = torch.cat([bar.new_ones(1), bar[:-1]])
    beta = 1 - bar / before
    posterior = Posteriors(grid).at(make_schedule(config).level(grid.t.flip(0), torch.float64))
    torch.testing.assert_close(posterior.large.exp(), beta, rtol=1e-10, atol=0)
    small = (1 - before) / (1 - bar) * beta
    torch.testing.assert_close(posterior.small[1:].exp(), small[1:], rtol=1e-10, atol=0)


def network(x: Tensor, t: Tensor) -> Tensor:
    return torch.cat([torch.tanh(x.roll(1, -1)), torch.cos(3 * x)], dim=1)


def test_a_denoiser_divides_the_output_and_guidance_keeps_the_variance_of_the_prompt() -> None:
    schedule = make_schedule(LEARNED.schedule)
    posteriors, level, x = (
        Posteriors(schedule.chain()),
        schedule.level(torch.tensor(300), torch.float64),
        random(2, 3, 4, 4),
    )
    denoised = make_denoiser(network, make_prediction("eps"), posteriors)(x, level)
    assert torch.equal(denoised.output, torch.tanh(x.roll(1, -1)))
    assert torch.equal(denoised.log_variance, posteriors.at(level).learned(torch.cos(3 * x)))

    def condition(*contexts: Tensor):  # type: ignore[no-untyped-def]
        scale = torch.cat(contexts)[:, :1, :1, None]
        return make_denoiser(lambda x, t: scale * network(x, t), make_prediction("eps"), posteriors)

    context, negative = torch.full((2, 1, 1), 0.5).double(), torch.full((2, 1, 1), -0.3).double()
    guided = classifier_free(condition, context, negative, make_prediction("eps"), 3.0)(x, level)
    assert torch.equal(guided.log_variance, condition(context)(x, level).log_variance)
    assert guided.output.shape == x.shape


def test_ddpm_steps_have_the_learned_variance_and_ddim_ones_none() -> None:
    schedule = make_schedule(LEARNED.schedule.model_copy(update={"set_alpha_to_one": True}))
    grid = schedule.grid(10)
    denoiser, noise = make_denoiser(network, make_prediction("eps"), Posteriors(grid)), random(2, 3, 4, 4, seed=2)
    x = random(2, 3, 4, 4)
    learned, fixed = (
        next(FirstOrder(1.0)(chosen, x, grid, lambda x: noise)).x
        for chosen in (denoiser, lambda x, level: denoiser(x, level)._replace(log_variance=None))
    )
    posterior = Posteriors(grid).at(grid.levels[0])
    deviation = posterior.learned(torch.cos(3 * x)).exp().sqrt()
    torch.testing.assert_close(
        learned - fixed, (deviation - (posterior.small / 2).exp()) * noise, rtol=1e-8, atol=1e-12
    )
    ends = [
        list(FirstOrder(0.0)(chosen, x, grid, lambda x: noise))[-1].x
        for chosen in (denoiser, lambda x, level: denoiser(x, level)._replace(log_variance=None))
    ]
    assert torch.equal(*ends)


def test_a_level_is_found_in_a_batch_as_alone() -> None:
    schedule = make_schedule(schedule_config(kind="flow", num_train_timesteps=20))
    grid = schedule.chain()
    posteriors = Posteriors(grid)
    levels = [grid.levels[i] for i in (0, 7, 19)]
    batch = Level(*(torch.stack([getattr(level, name) for level in levels]) for name in ("alpha", "sigma", "t")))
    together = posteriors.at(batch)
    for i, level in enumerate(levels):
        alone = posteriors.at(level)
        assert all(torch.equal(getattr(together, name)[i], getattr(alone, name)) for name in vars(alone))
