"""What the training loop needs of a stage: its networks, one optimizer step, and what it saves."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm.config.root import Config
from ldm.config.training import StageConfig
from ldm.data.broken import Broken
from ldm.data.loader import Batch
from ldm.data.random import StepRandom
from ldm.data.sources import Source
from ldm.models.compiling import compile_blocks
from ldm.training.checkpointing import checkpoint_gradients
from ldm.training.ema import EMA
from ldm.training.logging.trackers import check_trackers
from ldm.training.optim.groups import parameter_groups
from ldm.training.optim.optimizers import check_optimizer, make_optimizer
from ldm.training.optim.schedules import decay_function, learning_rate_factor
from ldm.training.parallel.choose import choose_strategy
from ldm.training.parallel.strategy import ShardingStrategy
from ldm.training.runs.run import Run


@dataclass(frozen=True)
class StartingPoint:
    """Names of the trained models that a stage starts from, as the command line gives them."""

    init: str | None = None
    vae: str | None = None


FROM_SCRATCH = StartingPoint()


class StepReport(NamedTuple):
    """Detached tensors of one optimizer step, on the device."""

    losses: dict[str, Tensor]  # scalars, logged by name
    observed: dict[str, Tensor]  # scalars and vectors for `diagnostics`, logged under `observed`


class ValidationLoss(NamedTuple):
    """The losses of a micro-batch on held-out images."""

    losses: Tensor  # (B,), or (1,) where only the mean is known
    times: Tensor | None = None  # timesteps (B,), as shares of the schedule in [0, 1]


class Stage(ABC):
    """One kind of training. Subclasses prepare their networks in `__init__` with `prepare`."""

    name: ClassVar[str]  # of the section in `training` and in `ldm.registry.STAGES`
    on_latents: ClassVar[bool] = False  # needs a trained autoencoder
    config: StageConfig

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        needs_images: bool = True,
        unreadable: Mapping[int, Broken] | None = None,
    ) -> None:
        """Set up a stage without networks.

        Args:
            config: The whole configuration.
            accelerator: As `start_accelerator` returns it.
            needs_images: False if all inputs follow from the images' indices, as with cached latents.
            unreadable: Images that are known to be unreadable, by index, if images are not needed.
        """
        self.config = config.training.of(self.name)
        self.accelerator, self.random = accelerator, StepRandom(config.training.seed)
        self.needs_images, self.unreadable = needs_images, unreadable
        self.trained: dict[str, ShardingStrategy] = {}
        self.emas: list[EMA] = []  # the first one is saved as the model

    @classmethod
    def complete(cls, config: Config, run: Path) -> Config:
        """Return the configuration with what follows from other files, before anything is built."""
        return config

    @classmethod
    def check(cls, config: Config, run: Run, start: StartingPoint) -> None:
        """Check configuration and files before time is spent on the data."""
        settings = config.training.of(cls.name)
        check_optimizer(settings)
        decay_function(settings.decay)
        check_trackers(config.training.trackers)

    @classmethod
    @abstractmethod
    def build(cls, config: Config, source: Source, accelerator: Accelerator, run: Run, start: StartingPoint) -> Self:
        """Build the stage from new networks, from `start`, or from a run that is resumed."""

    @abstractmethod
    def train_step(self, batches: Sequence[Batch], step: int, schedule_step: int | None = None) -> StepReport:
        """Do optimizer step number `step` on all its micro-batches.

        `schedule_step` is the step that schedules have reached, if not `step`; see `Clock`.
        """

    @abstractmethod
    def validate(self, batch: Batch, cached: bool = True) -> ValidationLoss:
        """Return the losses of the averaged weights on a micro-batch; called by the main process only.

        `cached`: whether a cache of latents, if there is one, holds the batch.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the averaged weights in diffusers layout; called by the main process only."""

    def sample(self) -> Any:
        """Return an image that shows the progress of training, or None; called by the main process only."""
        return None

    def finish(self, source: Source) -> dict[str, Any]:
        """Do what remains at the end of training, in all processes; return facts for the log."""
        return {}

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks as accelerate wraps them."""
        return {name: trained.wrapped for name, trained in self.trained.items()}

    @property
    def optimizers(self) -> dict[str, Any]:
        """The optimizers as accelerate wraps them."""
        return {name: trained.optimizer for name, trained in self.trained.items()}

    def prepare(
        self, name: str, network: nn.Module, rate: float, rates: Mapping[str, float], averaged: bool = False
    ) -> ShardingStrategy:
        """Prepare a network and its optimizer for the device and the processes; keep them as `trained[name]`.

        Args:
            name: The key in saved states.
            network: On this process' device; see `place`.
            rate: The learning rate.
            rates: Other learning rates by pattern; see `parameter_groups`.
            averaged: Whether `emas` follow this network.
        """
        averages = [copy.deepcopy(network) for _ in self.decays] if averaged else []
        if self.config.gradient_checkpointing:
            checkpoint_gradients(network)
        if self.config.compile:
            compile_blocks(network)
        groups = parameter_groups(network, rate, rates, self.config)
        optimizer = make_optimizer(groups, self.config)
        trained = self.trained[name] = choose_strategy(self.accelerator)(self.accelerator, network, optimizer)
        for average, decay in zip(averages, self.decays, strict=False):
            self.emas.append(EMA(average, decay, self.config.ema_device, trained))
        return trained

    @property
    def decays(self) -> tuple[float, ...]:
        """Decays of the averages; the first one is saved as the model."""
        return (self.config.ema_decay, *self.config.ema_others)

    def place(self, network: nn.Module) -> nn.Module:
        """Move a network to this process' device, in the configured memory format."""
        layout = torch.channels_last if self.config.channels_last else torch.preserve_format
        return network.to(self.accelerator.device).to(memory_format=layout)

    def begin(self, step: int, schedule_step: int | None = None) -> float:
        """Set the learning rates of a step and seed dropout; return the factor of the base rates."""
        # Only dropout uses torch's global generator. Its values, too, are a function of seed, step and process.
        torch.manual_seed(self.random.generator("dropout", step, self.accelerator.process_index).initial_seed())
        factor = learning_rate_factor(self.config, step, schedule_step)
        for trained in self.trained.values():
            for group in trained.optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
        return factor

    def update_averages(self, network: nn.Module, step: int) -> None:
        """Move the averages towards the weights of a network after its step."""
        for ema in self.emas:
            ema.update(network, step)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Gather all averages and move them to this process' device; all processes must enter this."""
        homes = [next(ema.network.parameters()).device for ema in self.emas]
        for ema in self.emas:
            ema.gather()
            ema.network.to(self.accelerator.device)
        try:
            yield
        finally:
            for ema, home in zip(self.emas, homes, strict=True):
                ema.network.to(home)

    def places(self, folder: Path) -> list[Path]:
        """Return where the averages are saved: the first one in `folder` itself."""
        return [folder, *(folder / f"ema-{ema.decay}" for ema in self.emas[1:])]

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs, as a tree of tensors and plain values.

        It is whole in the main process. All processes must call this, within `averaged`.
        """
        scaler = self.accelerator.scaler
        return {
            "networks": {name: trained.network_state() for name, trained in self.trained.items()},
            "optimizers": {name: trained.optimizer_state() for name, trained in self.trained.items()},
            "ema": self.emas[0].network.state_dict(),
            "ema_others": {str(ema.decay): ema.network.state_dict() for ema in self.emas[1:]},
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Load a whole `state`, in all processes."""
        for name, trained in self.trained.items():
            trained.load_network_state(state["networks"][name])
            trained.load_optimizer_state(state["optimizers"][name])
        self.emas[0].load(state["ema"])
        for ema in self.emas[1:]:
            ema.load(state["ema_others"][str(ema.decay)])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
