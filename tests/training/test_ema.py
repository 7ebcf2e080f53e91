"""The moving average of weights against its recurrence, and the learning rate's course."""

import copy
import itertools

import pytest
import torch
from torch import nn

from ldm.config.training import StageConfig
from ldm.training.ema import EMA
from ldm.training.optim.schedules import learning_rate_factor


def test_the_average_follows_its_recurrence() -> None:
    network = nn.Linear(3, 2)
    ema = EMA(copy.deepcopy(network), decay=0.9)
    expected = network.weight.detach().clone()
    for step in range(1, 200):
        with torch.no_grad():
            network.weight.normal_()
        ema.update(network, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network.weight.detach()
    torch.testing.assert_close(ema.network.weight, expected)
    assert not ema.network.weight.requires_grad


def test_the_average_of_half_precision_weights_is_float32() -> None:
    assert EMA(nn.Linear(2, 2).bfloat16(), 0.9).network.weight.dtype == torch.float32


@pytest.mark.parametrize("decay", ["constant", "cosine", "linear"])
def test_the_learning_rate_warms_up_and_falls_to_its_end(decay: str) -> None:
    config = StageConfig(max_steps=100, warmup_steps=10, decay=decay)
    factors = [learning_rate_factor(config, step) for step in range(1, 101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == 1.0
    assert max(factors) == 1.0
    if decay == "constant":
        assert factors[10:] == [1.0] * 90
    else:
        assert all(before > after for before, after in itertools.pairwise(factors[9:]))
        assert 0 < factors[-1] < 0.02


def test_a_fall_at_the_end_leaves_the_rate_before_it_alone() -> None:
    config = StageConfig(max_steps=100, decay="linear", decay_steps=20)
    factors = [learning_rate_factor(config, step) for step in range(1, 101)]
    assert factors[:80] == [1.0] * 80
    assert factors[-1] == pytest.approx(1 / 21)
