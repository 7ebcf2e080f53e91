"""States of networks and optimisers that are taken up again."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from ldm.config.training import UNetStageConfig
from ldm.training.optim.groups import make_optimizer, parameter_groups
from ldm.training.parallel.strategy import ShardingStrategy

DEVICE = torch.device("cpu")


def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network(images).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def made(optimizer: str = "adamw") -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    config = UNetStageConfig(optimizer=optimizer)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
    return network, make_optimizer(parameter_groups(network, 1e-2, {}, config), config, DEVICE)


def on_disk(tree: object) -> object:
    """What a file gives back: the same values, laid out in memory row by row."""
    if isinstance(tree, dict):
        return {key: on_disk(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [on_disk(value) for value in tree]
    return tree.clone(memory_format=torch.contiguous_format) if isinstance(tree, torch.Tensor) else tree


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_resumed_optimizer_goes_on_bit_by_bit_whatever_the_layout_of_the_weights_in_memory(kind: str) -> None:
    sharding = ShardingStrategy(Accelerator(cpu=True))
    network, optimizer = made(kind)
    for _ in range(2):
        step(network, optimizer)
    resumed, its_optimizer = made(kind)
    sharding.load_network_state(resumed, on_disk(sharding.network_state(network)))
    sharding.load_optimizer_state(its_optimizer, on_disk(sharding.optimizer_state(optimizer)))
    for _ in range(2):
        step(network, optimizer)
        step(resumed, its_optimizer)
    for weight, its_weight in zip(network.parameters(), resumed.parameters(), strict=True):
        assert weight.stride() == its_weight.stride()
        assert torch.equal(weight, its_weight)
