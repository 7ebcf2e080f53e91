"""The networks that a pipeline samples with: prepared ones, made anew when those that they stand for have changed."""

from __future__ import annotations

import copy
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ldm.generation import cuda_graphs
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.compiling import compile_blocks
from ldm.models.fast import prepare_for_sampling
from ldm.models.unet.unet import UNet

Network = TypeVar("Network", UNet, Autoencoder)


class State(NamedTuple):
    """What a prepared network depends on besides the code."""

    parts: tuple[tuple[int, type, int], ...]  # every module, its class, what stands for its attributes and hooks
    weights: tuple[int, ...]  # where they lie
    sums: Tensor  # of each weight, on a CPU
    config: object


class PreparedCache(Generic[Network]):
    """A network as a pipeline computes with it, by type, while the network is what it was."""

    def __init__(self, prepare: bool = True, compiled: bool = False) -> None:
        """Without `prepare` it is the network itself, or a plain copy in another type; `compiled` is for a GPU."""
        self.prepare, self.compiled = prepare or compiled, compiled
        self._state: State | None = None
        self._made: dict[torch.dtype, Network] = {}

    @torch.no_grad()
    def of(self, network: Network, dtype: torch.dtype | None = None) -> Network:
        """A network as it is now, also after its weights were edited in place, layers exchanged or moved.

        With a `dtype` it computes in that type. To see changes, all weights are added up: some milliseconds for a small
        network, a tenth of a second for Stable Diffusion's. What was made is kept, of each type that was asked for.
        """
        dtype = dtype or network.dtype
        if not self.prepare and dtype == network.dtype:
            return network
        state = _state(network)
        if self._state is None or not _same(state, self._state):
            self._made.clear()  # free their memory first
            self._state = state
        if dtype not in self._made:
            self._made[dtype] = self._copy(network, dtype)
        return self._made[dtype]

    def _copy(self, network: Network, dtype: torch.dtype) -> Network:
        if not self.prepare:
            return copy.deepcopy(network).to(dtype)
        made = prepare_for_sampling(network, dtype)
        if self.compiled:
            cuda_graphs.require_gpu(next(network.parameters()).device)
            compile_blocks(made)
        return made

    def pending(self, network: Network) -> int:
        """Bytes that the first prepared network will take beside the plain one's weights."""
        if not self.prepare or self._made:
            return 0
        return sum(weight.nbytes for weight in network.parameters() if weight.device.type == "cpu")


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
