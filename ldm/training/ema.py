"""Exponential moving average of a network's weights, which is what is saved and sampled from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.training.parallel.strategy import ShardingStrategy


class EMA:
    """A float32 average of a network: average += (1 - decay) * (weights - average).

    The decay of update n is at most (1 + n) / (10 + n), which forgets the random initialization quickly. On another
    `device` the average takes no memory beside the network but costs a copy of all weights in every step.
    """

    def __init__(
        self, copy: nn.Module, decay: float, device: str | None = None, sharding: ShardingStrategy | None = None
    ) -> None:
        """Start from `copy`, a whole copy of the network; `sharding` is the prepared network's strategy."""
        self.network = copy.float().to(device).eval().requires_grad_(False)
        self.decay = decay
        self._shards: list[Any] | None = None if sharding is None else sharding.shard(list(copy.parameters()))
        self._sharding = None if self._shards is None else sharding
        if self._shards is not None:
            if device is not None:
                raise UserError(f"ema_device {device} is not supported with sharded weights: set ema_device=null")
            self.network.to("cpu")

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move towards `network` after optimizer step `step`, counted from 1; copy its buffers."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, weights = self._shards or list(self.network.parameters()), list(network.parameters())
        if self._sharding is not None:
            averages, weights = self._sharding.local(averages), self._sharding.local(weights)
        weights = [
            weight.detach().to(average.device, torch.float32) for average, weight in zip(averages, weights, strict=True)
        ]
        torch._foreach_lerp_(averages, weights, 1 - decay)
        for average, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(buffer)

    @torch.no_grad()
    def gather(self) -> None:
        """Update the whole weights of `self.network` from the shards; all processes must call this."""
        if self._shards is not None and self._sharding is not None:
            for average, shard in zip(self.network.parameters(), self._shards, strict=True):
                average.copy_(self._sharding.unshard(shard))

    def load(self, state: dict[str, Tensor]) -> None:
        """Load the whole weights and buffers of a network's `state_dict()`."""
        self.network.load_state_dict(state)
        if self._shards is not None and self._sharding is not None:
            self._shards = self._sharding.shard(list(self.network.parameters()))
