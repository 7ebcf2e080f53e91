"""What a stage of training is to the loop: the networks it trains, one optimiser step, and what it saves."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm.config.training import StageConfig
from ldm.data.broken import Broken
from ldm.data.loader import Batch
from ldm.data.random import StepRandom
from ldm.data.sources import Source
from ldm.models.compiling import compile_blocks
from ldm.training.checkpointing import checkpoint_gradients
from ldm.training.ema import EMA
from ldm.training.optim.groups import make_optimizer, parameter_groups
from ldm.training.parallel.deepspeed import DeepSpeedStrategy, is_deepspeed
from ldm.training.parallel.strategy import ShardingStrategy


class Stage(ABC):
    """Networks, optimisers and losses of one training; the loop knows nothing else of it."""

    name: str
    needs_images: bool  # False where everything is known from their indices
    unreadable: Mapping[int, Broken] | None = None  # what is known of the images where they are not needed
    config: StageConfig
    accelerator: Accelerator
    random: StepRandom
    networks: dict[str, nn.Module]  # as prepared by accelerate
    optimizers: dict[str, Any]
    emas: list[EMA]  # the first is what is saved as the model
    at: int = 0  # the step at which schedules stand, where that is ahead of the one that is done
    observed: Mapping[str, Tensor] = MappingProxyType({})  # in the last step besides losses, see `observations`

    @cached_property
    def sharding(self) -> ShardingStrategy:
        """How the weights of the networks are divided among processes."""
        return (
            DeepSpeedStrategy(self.accelerator)
            if is_deepspeed(self.accelerator)
            else ShardingStrategy(self.accelerator)
        )

    @abstractmethod
    def losses(self, batches: list[Batch], step: int) -> dict[str, Tensor]:
        """Do optimiser step number `step` on all its micro-batches; detached scalars to be logged."""

    @abstractmethod
    def validate(self, batch: Batch) -> Tensor:
        """The loss () of the averaged weights on one micro-batch; called by the main process alone."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the averaged weights in diffusers layout; called by the main process alone."""

    @abstractmethod
    def sample(self) -> Any:
        """An image that shows how far training has come, or None; called by the main process alone."""

    def finish(self, source: Source) -> dict[str, Any]:
        """What is left to do when training ends, by all processes; the facts it found."""
        return {}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it all averages are whole, the newest, and on this process' device; every process must come here."""
        homes = [next(ema.network.parameters()).device for ema in self.emas]
        for ema in self.emas:
            ema.gather()
            ema.network.to(self.accelerator.device)
        try:
            yield
        finally:
            for ema, home in zip(self.emas, homes, strict=True):
                ema.network.to(home)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs, as a tree of tensors and plain values; every process must come here.

        It is whole in the main process. Call it within `averaged`.
        """
        scaler, sharding = self.accelerator.scaler, self.sharding
        return {
            "networks": {name: sharding.network_state(network) for name, network in self.networks.items()},
            "optimizers": {name: sharding.optimizer_state(optimizer) for name, optimizer in self.optimizers.items()},
            "ema": self.emas[0].network.state_dict(),
            "ema_others": {str(ema.decay): ema.network.state_dict() for ema in self.emas[1:]},
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up where `state` was written; every process must come here with the whole of it."""
        for name, network in self.networks.items():
            self.sharding.load_network_state(network, state["networks"][name])
            self.sharding.load_optimizer_state(self.optimizers[name], state["optimizers"][name])
        self.emas[0].load(state["ema"])
        for ema in self.emas[1:]:
            ema.load(state["ema_others"][str(ema.decay)])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def prepare(
        self,
        name: str,
        network: nn.Module,
        rate: float,
        rates: Mapping[str, float],
        emas: Sequence[EMA] = (),
    ) -> None:
        """Make the network's optimiser and hand both to accelerate, as `networks[name]` and `optimizers[name]`.

        `emas` are the averages that follow it, made before; `rates` as in `parameter_groups`.
        """
        if self.config.gradient_checkpointing:
            checkpoint_gradients(network)
        if self.config.compile:
            compile_blocks(network)
        groups = parameter_groups(network, rate, rates, self.config)
        optimizer = make_optimizer(groups, self.config, self.accelerator.device)
        self.networks[name], self.optimizers[name] = self.sharding.prepare(network, optimizer)
        for ema in emas:
            ema.shard(self.accelerator.unwrap_model(self.networks[name]))

    def averages_of(self, network: nn.Module) -> list[EMA]:
        """An average of `network` for every decay asked for, the one that is used first."""
        decays = (self.config.ema_decay, *self.config.ema_others)
        return [EMA(network, decay, self.config.ema_device) for decay in decays]

    def places(self, folder: Path) -> list[Path]:
        """Where the averages are saved: the first in `folder` itself."""
        return [folder, *(folder / f"ema-{ema.decay}" for ema in self.emas[1:])]

    def update_averages(self, name: str, step: int) -> None:
        """Let the averages follow a network after its step."""
        network = self.accelerator.unwrap_model(self.networks[name])
        for ema in self.emas:
            ema.update(network, step)

    def place(self, network: nn.Module) -> nn.Module:
        """The network on this process' device, its convolutions' weights in the memory format asked for."""
        layout = torch.channels_last if self.config.channels_last else torch.preserve_format
        return network.to(self.accelerator.device).to(memory_format=layout)

    def micro_batches(self, batches: list[Batch], network: nn.Module) -> Iterator[Batch]:
        """The micro-batches of a step; gradients of several processes are averaged in the last one only."""
        for number, batch in enumerate(batches):
            with self.sharding.micro_batch(network, last=number == len(batches) - 1):
                yield batch

    def update(self, name: str) -> Tensor:
        """Clip the gradients of a network, step its optimiser and clear them; the norm () before clipping."""
        return self.sharding.step(self.networks[name], self.optimizers[name], self.config.gradient_clip)

    def begin(self, step: int, at: int | None = None) -> float:
        """Put the learning rates of all optimisers to their schedule's value; that factor of the base rate.

        `at` is the step at which schedules stand; None: at this one.
        """
        self.at = step if at is None else at
        # Only dropout draws from torch's own generator: so its draws, too, are a function of seed, step and process.
        torch.manual_seed(self.random.generator("dropout", step, self.accelerator.process_index).initial_seed())
        factor = learning_rate_factor(self.config, step, self.at)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
        return factor


def learning_rate_factor(config: StageConfig, step: int, at: int | None = None) -> float:
    """Share of the base learning rate at step `step`, counted from 1: warm-up, then constant, cosine or linear fall.

    It falls as at step `at`, if that is given.
    """
    if step <= config.warmup_steps:
        return step / config.warmup_steps
    if config.decay == "constant":
        return 1.0
    length = config.decay_steps or config.max_steps - config.warmup_steps
    done = 1 - (config.max_steps + 1 - (step if at is None else at)) / (length + 1)
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
