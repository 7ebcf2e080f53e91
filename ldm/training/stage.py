"""What a stage of training is to the loop: the networks it trains, one optimiser step, and what it saves."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm.config import StageConfig
from ldm.data.broken import Broken
from ldm.data.draws import Draws
from ldm.data.loader import Batch
from ldm.data.shards import Shards
from ldm.data.sources import Source
from ldm.training.ema import EMA


class Stage(ABC):
    """Networks, optimisers and losses of one training; the loop knows nothing else of it."""

    name: str
    needs_pictures: bool  # False where everything is known from their indices
    unreadable: Mapping[int, Broken] | None = None  # what is known of the pictures where they are not needed
    config: StageConfig
    accelerator: Accelerator
    draws: Draws
    networks: dict[str, nn.Module]  # as prepared by accelerate
    optimizers: dict[str, Any]
    ema: EMA

    @abstractmethod
    def losses(self, batches: list[Batch], step: int) -> dict[str, Tensor]:
        """Do optimiser step number `step` on all its micro-batches; detached scalars to be logged."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the EMA weights in diffusers layout; called by the main process alone."""

    @abstractmethod
    def sample(self) -> Any:
        """A picture that shows how far training has come, or None."""

    def finish(self, source: Source | Shards) -> dict[str, Any]:
        """What is left to do when training ends, by all processes; the facts it found."""
        return {}

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs, as a tree of tensors and plain values."""
        unwrap = self.accelerator.unwrap_model
        scaler = self.accelerator.scaler
        return {
            "networks": {name: unwrap(network).state_dict() for name, network in self.networks.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "ema": self.ema.network.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up where `state` was written."""
        for name, network in self.networks.items():
            self.accelerator.unwrap_model(network).load_state_dict(state["networks"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.ema.network.load_state_dict(state["ema"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def place(self, network: nn.Module) -> nn.Module:
        """The network on this process' device, its convolutions' weights in the memory format asked for."""
        layout = torch.channels_last if self.config.channels_last else torch.preserve_format
        return network.to(self.accelerator.device).to(memory_format=layout)

    def optimizer(self, *parts: tuple[nn.Module, float]) -> torch.optim.AdamW:
        """Fused AdamW over the trainable weights of networks, each with its learning rate."""
        groups = [
            {"params": [weight for weight in network.parameters() if weight.requires_grad], "lr": learning_rate}
            for network, learning_rate in parts
        ]
        config = self.config
        return torch.optim.AdamW(groups, betas=config.betas, weight_decay=config.weight_decay, fused=True)

    def micro_batches(self, batches: list[Batch], network: nn.Module) -> Iterator[Batch]:
        """The micro-batches of a step; gradients of several processes are averaged in the last one only."""
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(network):
                yield batch

    def update(self, name: str) -> Tensor | None:
        """Clip the gradients of a network, step its optimiser and clear them; the norm before clipping."""
        norm = None
        if self.config.gradient_clip is not None:
            norm = self.accelerator.clip_grad_norm_(self.networks[name].parameters(), self.config.gradient_clip)
        self.optimizers[name].step()
        self.optimizers[name].zero_grad(set_to_none=True)
        return norm

    def set_learning_rate(self, step: int) -> float:
        """Put the learning rates of all optimisers to their schedule's value; that factor of the base rate."""
        factor = learning_rate_factor(self.config, step)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
        return factor


def learning_rate_factor(config: StageConfig, step: int) -> float:
    """Share of the base learning rate at step `step`, counted from 1: warm-up, then constant, cosine or linear fall."""
    if step <= config.warmup_steps:
        return step / config.warmup_steps
    if config.decay == "constant":
        return 1.0
    length = config.decay_steps or config.max_steps - config.warmup_steps
    done = 1 - (config.max_steps + 1 - step) / (length + 1)
    done = min(max(done, 0.0), 1.0)
    return 1 - done if config.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))


@contextmanager
def frozen(network: nn.Module) -> Iterator[nn.Module]:
    """The network with gradients flowing through it but not into its weights."""
    needed = [weight.requires_grad for weight in network.parameters()]
    network.requires_grad_(False)
    try:
        yield network
    finally:
        for weight, need in zip(network.parameters(), needed, strict=True):
            weight.requires_grad_(need)
