"""Exponential moving average of a network's weights: what is saved, sampled from and used."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.training.parallel.sharding import divided, is_shard, local


class EMA:
    """A float32 copy of a network that follows it: average += (1 - decay) * (weights - average).

    Early on the decay is (1 + n) / (10 + n) for the n-th update, where that is smaller, so that the random start is
    soon forgotten. On a `device` of its own the average costs a copy of all weights in every step, and no memory there.
    """

    def __init__(self, network: nn.Module, decay: float, device: str | None = None) -> None:
        self.network = copy.deepcopy(network).float().to(device).eval().requires_grad_(False)
        self.decay, self._device = decay, device
        self._shards: list = []  # what is averaged, where processes divide the weights among them

    def shard(self, network: nn.Module) -> None:
        """Average only this process' shards, if the weights of `network` are divided."""
        weights = list(network.parameters())
        if any(is_shard(weight) for weight in weights):
            if self._device is not None:
                raise UserError(
                    f"ema_device {self._device}: averages of divided weights lie beside them, set ema_device=null"
                )
            self._shards = [divided(average.detach(), weight) for average, weight in self._pairs(weights)]
            self.network.to("cpu")

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move towards `network` after optimiser step number `step`, counted from 1; buffers are copied."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [local(average) for average in self._shards or self.network.parameters()]
        weights = [
            local(weight).detach().to(average.device, torch.float32)
            for average, weight in zip(averages, network.parameters(), strict=True)
        ]
        torch._foreach_lerp_(averages, weights, 1 - decay)
        for average, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(buffer)

    @torch.no_grad()
    def gather(self) -> None:
        """Make the weights of `network` whole and the newest; where they are sharded, every process must come here."""
        for average, shard in self._pairs(self._shards):
            average.copy_(shard.full_tensor())

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take over the whole weights and buffers of a network's `state_dict()`."""
        self.network.load_state_dict(state)
        self._shards = [divided(average.detach(), shard) for average, shard in self._pairs(self._shards)]

    def _pairs(self, weights: list) -> list:
        return list(zip(self.network.parameters(), weights, strict=True)) if weights else []
