"""A cache of prepared networks, which are made again when the original changes."""

from __future__ import annotations

import copy
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ldm.generation import cuda_graphs
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.compiling import compile_blocks
from ldm.models.fast import prepare_for_sampling
from ldm.models.precision import supported_dtype
from ldm.models.unet.unet import UNet

Network = TypeVar("Network", UNet, Autoencoder)


class State(NamedTuple):
    """What a prepared network depends on, except the code."""

    modules: list[tuple[int, type, int]]  # identity, class, and a hash of attributes and hooks
    weights: list[int]  # addresses
    sums: Tensor  # of each weight on a CPU; elsewhere copies share their weights
    config: object


class PreparedCache(Generic[Network]):
    """Prepared copies of a network, by dtype."""

    def __init__(self, prepare: bool = True, compiled: bool = False) -> None:
        """Without `prepare`, return the network itself, or a plain copy in another dtype; `compiled` needs a GPU."""
        self.prepare, self.compiled = prepare or compiled, compiled
        self._state: State | None = None
        self._made: dict[torch.dtype, Network] = {}
        self._graphs: cuda_graphs.CUDAGraphUNet | None = None

    @torch.no_grad()
    def get(self, network: Network, dtype: torch.dtype | None = None) -> Network:
        """Return a network for inference in its own or another dtype, float32 for float16 with `force_upcast`.

        Edited weights and replaced or moved layers are noticed by summing all weights, which takes milliseconds for a
        small network and a tenth of a second for Stable Diffusion's.
        """
        dtype = network.dtype if dtype is None else supported_dtype(network.config, dtype)
        if not self.prepare and dtype == network.dtype:
            return network
        state, last = _state_of(network), self._state
        if last is None or state[:2] != last[:2] or state.config is not last.config or not state.sums.equal(last.sums):
            self._made.clear()  # before memory for the next copy is allocated
            self._state = state
        if dtype not in self._made:
            self._made[dtype] = self._copy(network, dtype)
        return self._made[dtype]

    def replayed(self, unet: UNet) -> UNet | cuda_graphs.CUDAGraphUNet:
        """Return a prepared U-Net by CUDA graphs if it is compiled; graphs of an earlier one are discarded."""
        if not self.compiled:
            return unet
        if self._graphs is None or self._graphs.unet is not unet:
            self._graphs = cuda_graphs.CUDAGraphUNet(unet)
        return self._graphs

    def pending(self, network: Network) -> int:
        """Return the bytes that the first prepared copy will need in addition to the original."""
        if not self.prepare or self._made:
            return 0
        return sum(weight.nbytes for weight in network.parameters() if weight.device.type == "cpu")

    def _copy(self, network: Network, dtype: torch.dtype) -> Network:
        if not self.prepare:
            return copy.deepcopy(network).to(dtype)
        prepared = prepare_for_sampling(network, dtype)
        if self.compiled:
            cuda_graphs.require_gpu(next(network.parameters()).device)
            compile_blocks(prepared)
        return prepared


def _state_of(network: Network) -> State:
    weights = [*network.parameters(), *network.buffers()]
    sums = [weight.sum().float() for weight in weights if weight.device.type == "cpu"]
    return State(
        [(id(module), type(module), _attributes(module)) for module in network.modules()],
        [weight.data_ptr() for weight in weights],
        torch.stack(sums) if sums else torch.empty(0),
        network.config,
    )


def _attributes(module: nn.Module) -> int:
    return hash((len(module._forward_hooks), len(module._forward_pre_hooks), *map(id, vars(module).values())))
