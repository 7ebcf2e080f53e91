"""Every weighting in its published forms, for a network that predicts noise, image or velocity."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ldm.config.diffusion import DiffusionConfig, schedule_config, weighting_config
from ldm.diffusion.bound import bound_term
from ldm.diffusion.denoiser import Denoised
from ldm.diffusion.level import Level
from ldm.diffusion.loss import DenoisingLoss
from ldm.diffusion.posterior import Posteriors
from ldm.diffusion.schedule import make_schedule

T = torch.tensor([1, 10, 400, 999])
SCHEDULE = make_schedule(schedule_config(kind="linear", beta_start=1e-4, beta_end=0.02))
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
BAR = (1 - BETAS).cumprod(0)
LEVELS = SCHEDULE.level(T, torch.float64)
SMALL = BETAS[1:] * (1 - BAR[:-1]) / (1 - BAR[1:])  # posterior variances of timesteps 1 to 999

Form = Callable[[Tensor], Tensor]


def weight(prediction: str, level: Level = LEVELS, **options: object) -> Tensor:
    config = DiffusionConfig(prediction=prediction, schedule=SCHEDULE.config, weighting=weighting_config(**options))
    return DenoisingLoss(config).weight(level)


def assert_same(made: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(made, expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize(("gamma", "k"), [(1.0, 1.0), (0.5, 1.0), (2.0, 3.0)])
@pytest.mark.parametrize(
    ("prediction", "uniform"),
    [("eps", lambda snr: torch.ones_like(snr)), ("x0", lambda snr: snr), ("v", lambda snr: snr / (snr + 1))],
)
def test_p2_divides_the_uniform_weight_on_the_noise(prediction: str, uniform: Form, gamma: float, k: float) -> None:
    """Choi et al. 2022: lambda / (k + SNR)^gamma, where lambda is that of L_simple, whatever the network predicts."""
    made = weight(prediction, kind="p2", p2_gamma=gamma, p2_k=k)
    assert_same(made, uniform(LEVELS.snr) / (k + LEVELS.snr) ** gamma)


@pytest.mark.parametrize("gamma", [4.0, 5.0])
@pytest.mark.parametrize(
    ("prediction", "published"),
    [
        ("eps", lambda snr, gamma: gamma / (snr + gamma)),
        ("x0", lambda snr, gamma: gamma * snr / (snr + gamma)),
        ("v", lambda snr, gamma: gamma * snr / ((snr + gamma) * (snr + 1))),
    ],
)
def test_soft_min_snr_has_its_published_forms(prediction: str, published: Callable, gamma: float) -> None:  # type: ignore[type-arg]
    assert_same(weight(prediction, kind="soft_min_snr", gamma=gamma), published(LEVELS.snr, gamma))


def test_soft_min_snr_is_that_of_k_diffusion() -> None:
    """There the output's error counts (s d)^2 / (s^2 + d^2)^2, s = sigma / alpha, gamma = 1 / d^2.

    The output moves the image by s d / sqrt(s^2 + d^2) (Karras et al. 2022, table 1); at d = 1 it is -v.
    """
    s = LEVELS.sigma / LEVELS.alpha
    for d in (0.5, 1.0):
        on_output = (s * d) ** 2 / (s**2 + d**2) ** 2
        on_x0 = on_output / ((s * d) ** 2 / (s**2 + d**2))
        assert_same(weight("x0", kind="soft_min_snr", gamma=1 / d**2), on_x0)
    assert_same(weight("v", kind="soft_min_snr", gamma=1.0), s**2 / (s**2 + 1) ** 2)


def test_soft_min_snr_tends_to_min_snr_on_both_sides() -> None:
    for snr in (1e-6, 1e6):
        level = Level(*(torch.tensor(value, dtype=torch.float64).sqrt() for value in (snr, 1.0)), torch.tensor(0))
        soft, hard = (weight("x0", level, kind=kind, gamma=5.0) for kind in ("soft_min_snr", "min_snr"))
        assert soft.item() == pytest.approx(hard.item(), rel=1e-5)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_vlb_has_its_published_forms(prediction: str) -> None:
    """Ho et al. 2020, eq. 12 with the small variance for eps; half the fall of SNR for x0 (Kingma et al. 2021)."""
    snr = BAR / (1 - BAR)
    published = {
        "eps": BETAS[T] ** 2 / (2 * SMALL[T - 1] * (1 - BETAS[T]) * (1 - BAR[T])),
        "x0": (snr[T - 1] - snr[T]) / 2,
        "v": (snr[T - 1] - snr[T]) / 2 * (1 - BAR[T]),
    }
    assert_same(weight(prediction, kind="vlb"), published[prediction])


def test_vlb_at_the_first_timestep_is_a_gaussian_decoder_with_the_variance_of_the_second() -> None:
    first = SCHEDULE.level(torch.tensor(0), torch.float64)
    assert_same(weight("x0", first, kind="vlb"), 1 / (2 * SMALL[0]))


def test_vlb_is_what_the_bound_gives_for_the_same_error() -> None:
    x0, error = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)
    posterior = Posteriors(SCHEDULE.chain()).at(LEVELS)
    fixed = posterior.small.view(4, 1, 1, 1).expand_as(x0)
    bits = bound_term(posterior, Denoised(x0 + error, x0, fixed), x0, "gaussian")
    nats = bits * torch.log(torch.tensor(2.0, dtype=torch.float64))
    torch.testing.assert_close(nats, weight("x0", kind="vlb") * error.square().flatten(1).mean(1), rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", ["soft_min_snr", "p2", "vlb"])
def test_weights_are_finite_without_any_signal(kind: str) -> None:
    schedule = schedule_config(zero_terminal_snr=True)
    config = DiffusionConfig(prediction="v", schedule=schedule, weighting=weighting_config(kind=kind))
    made = DenoisingLoss(config).weight(make_schedule(schedule).level(torch.arange(1000), torch.float64))
    assert made.isfinite().all()
    assert (made >= 0).all()
