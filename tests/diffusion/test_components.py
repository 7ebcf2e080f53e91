"""Schedules, predictions, weightings and samplers of third parties: one class or function each, and a registration."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldm.checkpoint.diffusers.pipeline import load_scheduler, save_scheduler
from ldm.config.diffusion import DiffusionConfig, WeightingConfig
from ldm.config.section import parse
from ldm.diffusion.denoiser import Denoised, Denoiser
from ldm.diffusion.level import Grid, Level
from ldm.diffusion.loss import DenoisingLoss
from ldm.diffusion.prediction import Prediction
from ldm.diffusion.samplers import make_sampler, sampler_eta
from ldm.diffusion.samplers.step import Noise, Step
from ldm.diffusion.schedule import TableConfig, TableSchedule, make_schedule
from ldm.diffusion.weighting import Weighting
from ldm.errors import UserError
from ldm.registry import PREDICTIONS, SAMPLERS, SCHEDULES, WEIGHTINGS, Registry


class ConstantConfig(TableConfig):
    kind: str = "constant"
    beta: float = 0.01


class Constant(TableSchedule):
    section = ConstantConfig

    @staticmethod
    def betas(config: ConstantConfig) -> Tensor:
        return torch.full((config.num_train_timesteps,), config.beta, dtype=torch.float64)


class Sum(Prediction):
    def coefficients(self, level: Level) -> tuple[Tensor, Tensor]:
        return torch.ones_like(level.alpha), torch.ones_like(level.alpha)


class HalfConfig(WeightingConfig):
    kind: str = "half"
    factor: float = 0.5


class Half(Weighting):
    section = HalfConfig

    def __call__(self, level: Level) -> Tensor:
        return self.config.factor * super().__call__(level)


def jump(denoiser: Denoiser, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
    """Predict the image at the first level."""
    denoised = denoiser(x, grid.levels[0])
    yield Step(denoised.x0, grid.levels[-1], denoised)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[tuple[Registry, str, object]] = [
        (SCHEDULES, "constant", Constant),
        (PREDICTIONS, "sum", Sum),
        (WEIGHTINGS, "half", Half),
        (SAMPLERS, "jump", jump),
    ]
    for registry, name, component in added:
        monkeypatch.setattr(registry, "_components", dict(registry._components))
        registry.register(name, component)


TREE = {
    "schedule": {"kind": "constant", "beta": 0.02, "num_train_timesteps": 50},
    "prediction": "sum",
    "weighting": {"kind": "half", "factor": 0.25},
}


def test_a_configuration_has_their_options() -> None:
    config = parse(TREE, DiffusionConfig, "here")
    assert make_schedule(config.schedule).level(torch.tensor(1), torch.float64).alpha.item() == pytest.approx(0.98)
    level = make_schedule(config.schedule).sample(torch.tensor([0.5]))
    output = torch.zeros(1, 4)
    assert DenoisingLoss(config)(output, output + 2, level).item() == 1.0


def test_a_scheduler_folder_has_them(tmp_path: Path) -> None:
    config = parse(TREE, DiffusionConfig, "here")
    save_scheduler(config, tmp_path)
    assert load_scheduler(tmp_path) == config


def test_a_sampler_is_a_function() -> None:
    grid = make_schedule(parse(TREE, DiffusionConfig, "here").schedule).grid(5)
    (step,) = make_sampler("jump")(lambda x, level: Denoised(x + 1, x), torch.zeros(3), grid, torch.randn_like)
    assert step.x.tolist() == [1, 1, 1]
    assert sampler_eta("jump") is None
    with pytest.raises(UserError, match="no sampler 'jumb': did you mean 'jump'"):
        make_sampler("jumb")


def test_an_unknown_name_in_a_configuration_is_an_error_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"schedule.kind: did you mean 'constant'\? Input should be one of 'linear'"):
        parse({"schedule": {"kind": "constand"}}, DiffusionConfig, "here")
    with pytest.raises(UserError, match=r"prediction: did you mean 'eps'\?"):
        parse({"prediction": "epss"}, DiffusionConfig, "here")
