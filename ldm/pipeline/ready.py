"""The networks that a pipeline samples with: prepared ones, made anew when those that they stand for have changed."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ldm.models.autoencoder import Autoencoder
from ldm.models.prepared import prepare_for_sampling
from ldm.models.unet import UNet

Network = TypeVar("Network", UNet, Autoencoder)


class State(NamedTuple):
    """What a prepared network depends on besides the code."""

    parts: tuple[tuple[int, type, int], ...]  # every module, its class, what stands for its attributes and hooks
    weights: tuple[int, ...]  # where they lie
    sums: Tensor  # of each weight, on a CPU
    config: object


class Ready(Generic[Network]):
    """A network's prepared copy, while that is what it was."""

    def __init__(self) -> None:
        self._made: tuple[State, Network] | None = None

    @torch.no_grad()
    def of(self, network: Network) -> Network:
        """The copy of a network as it is now, also after its weights were edited in place, layers exchanged or moved.

        To see that, all weights are added up: some milliseconds for a small network, a tenth of a second for Stable
        Diffusion's.
        """
        state = _state(network)
        if self._made is None or not _same(state, self._made[0]):
            self._made = None  # free its memory first
            self._made = state, prepare_for_sampling(network)
        return self._made[1]


def _state(network: Network) -> State:
    weights = [*network.parameters(), *network.buffers()]
    own = [weight.sum() for weight in weights if weight.device.type == "cpu"]  # elsewhere a copy has the same weights
    return State(
        tuple((id(part), type(part), _attributes(part)) for part in network.modules()),
        tuple(weight.data_ptr() for weight in weights),
        torch.stack([total.float() for total in own]) if own else torch.empty(0),
        network.config,
    )


def _attributes(part: nn.Module) -> int:
    hooks = len(part._forward_hooks), len(part._forward_pre_hooks)
    return hash((*hooks, *(id(value) for value in vars(part).values())))


def _same(one: State, other: State) -> bool:
    return one[:2] == other[:2] and one.config is other.config and torch.equal(one.sums, other.sums)
