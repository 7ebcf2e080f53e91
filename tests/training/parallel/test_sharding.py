"""States of networks and optimizers that are loaded again."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from ldm.config.training import UNetStageConfig
from ldm.training.optim.groups import parameter_groups
from ldm.training.optim.optimizers import make_optimizer
from ldm.training.parallel.strategy import ShardingStrategy


def step(trained: ShardingStrategy) -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    trained.backward(trained.wrapped(images).square().mean())
    trained.step(None)


def made(optimizer: str) -> ShardingStrategy:
    torch.manual_seed(0)
    config = UNetStageConfig(optimizer=optimizer)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(parameter_groups(network, 1e-2, {}, config), config)
    return ShardingStrategy(Accelerator(cpu=True), network, optimizer)


def on_disk(tree: object) -> object:
    """The tree as a file returns it: the same values in contiguous memory."""
    if isinstance(tree, dict):
        return {key: on_disk(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [on_disk(value) for value in tree]
    return tree.clone(memory_format=torch.contiguous_format) if isinstance(tree, torch.Tensor) else tree


@pytest.mark.parametrize("kind", ["adamw", "muon", "torch.optim.Adafactor"])
def test_a_resumed_optimizer_continues_bit_for_bit_in_any_memory_format_of_the_weights(kind: str) -> None:
    trained, resumed = made(kind), made(kind)
    for _ in range(2):
        step(trained)
    resumed.load_network_state(on_disk(trained.network_state()))
    resumed.load_optimizer_state(on_disk(trained.optimizer_state()))
    for _ in range(2):
        step(trained)
        step(resumed)
    for weight, its_weight in zip(trained.network.parameters(), resumed.network.parameters(), strict=True):
        assert weight.stride() == its_weight.stride()
        assert torch.equal(weight, its_weight)
