"""Optimizers and decays by built-in or dotted names."""

import pytest
import torch
from torch import nn

from ldm.config.training import AutoencoderStageConfig, StageConfig
from ldm.errors import UserError
from ldm.training.optim.groups import parameter_groups
from ldm.training.optim.optimizers import check_optimizer, make_optimizer
from ldm.training.optim.schedules import learning_rate_factor


def optimizer(**options: object) -> torch.optim.Optimizer:
    config = StageConfig(**options)
    return make_optimizer(parameter_groups(nn.Linear(3, 2), 1e-2, {"bias": 1e-3}, config), config)


def squared(done: float) -> float:
    return (1 - done) ** 2


def test_a_dotted_name_is_imported_with_its_options_and_learning_rates() -> None:
    found = optimizer(optimizer="torch.optim.Adafactor", optimizer_options={"beta2_decay": -0.7}, weight_decay=0.1)
    assert type(found) is torch.optim.Adafactor
    assert [group["lr"] for group in found.param_groups] == [1e-2, 1e-3]
    assert {(group["beta2_decay"], group["weight_decay"]) for group in found.param_groups} == {(-0.7, 0.1)}


def test_options_override_those_of_a_built_in_optimizer() -> None:
    assert optimizer(optimizer_options={"eps": 1e-6, "betas": (0.5, 0.6)}).defaults["eps"] == 1e-6
    with pytest.raises(UserError, match=r"optimizer adamw with .*momentums"):
        optimizer(optimizer_options={"momentums": 1})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adam", "optimizer 'adam' is unknown: use adamw, adamw8bit, muon or a dotted name"),
        ("torch.optim.Adamm", "'torch.optim.Adamm' cannot be imported: module 'torch.optim' has no attribute"),
        ("no_such_package.Adam", "'no_such_package.Adam' cannot be imported: No module named 'no_such_package'"),
        ("torch.nn.Linear", "'torch.nn.Linear' is not a subclass of torch.optim.Optimizer"),
        ("torch.pi", "'torch.pi' is float, not a class or function"),
    ],
)
def test_a_name_that_is_no_optimizer_is_an_error(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_optimizer(StageConfig(optimizer=name))


def test_muon_is_not_supported_for_autoencoders() -> None:
    with pytest.raises(ValueError, match="muon is not supported with a discriminator"):
        AutoencoderStageConfig(optimizer="muon")


def test_a_decay_may_be_a_dotted_function_of_the_share_that_is_done() -> None:
    config = StageConfig(max_steps=100, decay=f"{__name__}.squared")
    linear = StageConfig(max_steps=100, decay="linear")
    for step in (1, 50, 100):
        assert learning_rate_factor(config, step) == pytest.approx(learning_rate_factor(linear, step) ** 2)
    with pytest.raises(UserError, match="decay 'step' is unknown: use constant, linear, cosine or a dotted name"):
        learning_rate_factor(StageConfig(decay="step"), 1)
