"""Exponential moving average of a network's weights: what is saved, sampled from and used."""

from __future__ import annotations

import copy

import torch
from torch import nn


class EMA:
    """A float32 copy of a network that follows it: average += (1 - decay) * (weights - average).

    Early on the decay is (1 + n) / (10 + n) for the n-th update, where that is smaller, so that the random start is
    soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).float().eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move towards `network` after optimiser step number `step`, counted from 1; buffers are copied."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = list(self.network.parameters())
        weights = [weight.detach().float() for weight in network.parameters()]
        torch._foreach_lerp_(averages, weights, 1 - decay)
        for average, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(buffer)
