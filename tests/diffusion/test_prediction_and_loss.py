from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm.config.diffusion import DiffusionConfig, schedule_config, weighting_config
from ldm.diffusion.level import Level
from ldm.diffusion.loss import DenoisingLoss
from ldm.diffusion.prediction import make_prediction
from ldm.diffusion.schedule import make_schedule

KINDS = ("eps", "x0", "v", "flow")
T = torch.tensor([0, 10, 400, 999])


def random(seed: int) -> Tensor:
    return torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def levels(zero: bool = False) -> Level:
    return make_schedule(schedule_config(zero_terminal_snr=zero)).level(T, torch.float64)


def straight_levels() -> Level:
    """Rectified flow's path, where alpha^2 + sigma^2 is not 1."""
    time = torch.tensor([0.01, 0.3, 0.9, 1.0], dtype=torch.float64)
    return Level(1 - time, time, (1000 * time).long())


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("eps", lambda x0, noise, alpha, sigma: noise),
        ("x0", lambda x0, noise, alpha, sigma: x0),
        ("v", lambda x0, noise, alpha, sigma: alpha * noise - sigma * x0),
        ("flow", lambda x0, noise, alpha, sigma: noise - x0),
    ],
)
def test_targets_are_the_published_ones(kind: str, expected) -> None:  # type: ignore[no-untyped-def]
    alpha, sigma = (value.view(4, 1, 1, 1) for value in (levels().alpha, levels().sigma))
    target = make_prediction(kind).target(random(0), random(1), levels())
    torch.testing.assert_close(target, expected(random(0), random(1), alpha, sigma), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", [levels(), levels(zero=True), straight_levels()])
def test_image_and_noise_come_back_from_the_output(kind: str, path: Level) -> None:
    if kind == "eps" and path.alpha[-1] == 0:
        path = Level(path.alpha[:3], path.sigma[:3], path.t[:3])
    x0, noise = random(0)[: len(path.t)], random(1)[: len(path.t)]
    x, output = path.noisy(x0, noise), make_prediction(kind).target(x0, noise, path)
    torch.testing.assert_close(make_prediction(kind).to_x0(x, output, path), x0, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(make_prediction(kind).to_eps(x, output, path), noise, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_x0_moves_with_the_output_as_the_weight_says(kind: str) -> None:
    """The identity behind every weighting, against automatic differentiation."""
    path = levels()
    output = random(2).requires_grad_()
    make_prediction(kind).to_x0(random(1), output, path).sum().backward()
    weight = make_prediction(kind).output_weight(torch.ones_like(path.alpha), path)
    torch.testing.assert_close(weight, output.grad[:, 0, 0, 0] ** 2, rtol=1e-9, atol=0)  # type: ignore[index]


def config(prediction: str, kind: str = "min_snr") -> DiffusionConfig:
    return DiffusionConfig(prediction=prediction, weighting=weighting_config(kind=kind, gamma=5.0))


@pytest.mark.parametrize(
    ("prediction", "published"),
    [
        ("eps", lambda snr: snr.clamp(max=5) / snr),  # Hang et al. 2023, section 3.4
        ("v", lambda snr: snr.clamp(max=5) / (snr + 1)),
        ("x0", lambda snr: snr.clamp(max=5)),
    ],
)
def test_min_snr_has_its_published_forms(prediction: str, published) -> None:  # type: ignore[no-untyped-def]
    path = levels()
    torch.testing.assert_close(
        DenoisingLoss(config(prediction)).weight(path), published(path.snr), rtol=1e-10, atol=1e-14
    )


def test_min_snr_is_finite_without_any_signal() -> None:
    weight = DenoisingLoss(config("v")).weight(levels(zero=True))
    assert weight.isfinite().all()
    assert weight[-1] == 0


@pytest.mark.parametrize("kind", ["uniform", "min_snr"])
def test_the_loss_is_each_samples_own_weighted_mean_square(kind: str) -> None:
    path = levels()
    loss = DenoisingLoss(config("v", kind))
    error = torch.stack([(random(0)[i] - random(1)[i]).square().mean() for i in range(4)])
    expected = error if kind == "uniform" else error * path.snr.clamp(max=5) / (path.snr + 1)
    assert loss(random(0), random(1), path).shape == (4,)
    torch.testing.assert_close(loss(random(0), random(1), path).double(), expected, rtol=1e-5, atol=0)


def test_the_loss_of_half_precision_outputs_is_float32() -> None:
    loss = DenoisingLoss(config("v"))(random(0).bfloat16(), random(1).float(), levels())
    assert loss.dtype == torch.float32
