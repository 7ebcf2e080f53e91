"""Noise schedules: the contract, and schedules that are tables over the training timesteps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ldm.config.diffusion import DiffusionConfig, ScheduleConfig
from ldm.config.section import NameOf
from ldm.diffusion import grids, schedulers
from ldm.diffusion.level import Grid, Level, clean_level
from ldm.registry import SCHEDULES
from ldm.storage.fields import Fields

DIFFUSION = ("schedule", "prediction", "learned_variance", "variance", "clipping")  # options of the diffusion section


class NoiseSchedule(ABC):
    """Noise levels for training, sampling and the variational bound.

    The class methods map the diffusion section to `scheduler_config.json`. By default they write fields that only ldm
    reads, under the name of the class.
    """

    section: ClassVar[type[ScheduleConfig]] = ScheduleConfig
    config: Any  # an instance of `section`

    def __init__(self, config: ScheduleConfig) -> None:
        self.config = config

    @abstractmethod
    def level(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Level:
        """Return the levels at times `t` of the network, in the shape and on the device of `t`."""

    @abstractmethod
    def sample(self, uniform: Tensor) -> Level:
        """Return training levels in float32 for uniform random numbers (B,) in [0, 1)."""

    @abstractmethod
    def grid(self, steps: int, spacing: str | None = None) -> Grid:
        """Return the levels of sampling in `steps` steps, in float64; the default spacing is the schedule's own.

        Raises:
            UserError: for an unknown spacing, or a number of steps that the schedule does not support.
        """

    @abstractmethod
    def grid_at(self, timesteps: Sequence[float]) -> Grid:
        """Return the levels of sampling at the given decreasing timesteps, in float64.

        Raises:
            UserError: unless they decrease and lie in the schedule.
        """

    @abstractmethod
    def chain(self) -> Grid:
        """Return all steps of the diffusion process down to the image itself, in float64."""

    @classmethod
    def scheduler_classes(cls) -> tuple[str, ...]:
        """Return names of diffusers' scheduler classes whose fields this schedule may read."""
        return (cls.__name__,)

    @classmethod
    def scheduler_class(cls, config: DiffusionConfig) -> str:
        """Name of diffusers' scheduler class that is written."""
        return cls.__name__

    @classmethod
    def reads(cls, fields: Fields) -> bool:
        """Return whether this schedule reads the fields of a `scheduler_config.json`."""
        return fields.get("_class_name") in cls.scheduler_classes()

    @classmethod
    def to_fields(cls, config: DiffusionConfig) -> Fields:
        """Convert the diffusion section to the fields of `scheduler_class`.

        Raises:
            UserError: for an option that the class does not have.
        """
        return config.model_dump(mode="json", include=set(DIFFUSION))

    @classmethod
    def from_fields(cls, fields: Fields, where: Path) -> Fields:
        """Convert the fields of a file that `reads` accepts to options of the diffusion section.

        Raises:
            UserError: for a field that ldm does not support.
        """
        return {name: fields[name] for name in DIFFUSION if name in fields}


def make_schedule(config: ScheduleConfig) -> NoiseSchedule:
    """Build the schedule of a configuration."""
    schedule: NoiseSchedule = SCHEDULES[config.kind](config)
    return schedule


class TableConfig(ScheduleConfig):
    """Options of schedules that are tables over the training timesteps."""

    kind: str = "cosine"
    zero_terminal_snr: bool = False  # rescale so that the noisiest level has no signal (Lin et al. 2024)
    spacing: Annotated[str, NameOf(grids.SPACINGS)] = "leading"  # of the sampling grid
    steps_offset: int = Field(1, ge=0)  # added to the timesteps of spacing leading
    set_alpha_to_one: bool = False  # sampling ends at the image itself instead of at the level of timestep 0

    @property
    def starts_from_noise(self) -> bool:
        """Whether the noisiest level has no signal (alpha is 0)."""
        return self.zero_terminal_snr


class BetaConfig(TableConfig):
    """Options of schedules of betas between a first and a last one, by default Stable Diffusion's."""

    kind: str = "scaled_linear"
    beta_start: float = Field(0.00085, gt=0, lt=1)
    beta_end: float = Field(0.012, gt=0, lt=1)


class TableSchedule(NoiseSchedule):
    """The variance-preserving levels of a discrete diffusion, computed in float64.

    alpha_t = sqrt(prod_{s <= t} (1 - beta_s)), sigma_t = sqrt(1 - alpha_t^2) (Ho et al. 2020, eq. 4).
    Subclasses define `betas`.
    """

    section: ClassVar[type[ScheduleConfig]] = BetaConfig
    diffusers_name: ClassVar[str | None] = None  # `beta_schedule` of diffusers' schedulers; None: only ldm reads it

    def __init__(self, config: TableConfig) -> None:
        super().__init__(config)
        alpha = (1 - self.betas(config)).cumprod(0).sqrt()
        if config.zero_terminal_snr:
            alpha = rescale_zero_terminal_snr(alpha)
        self.alpha = alpha  # (T,)
        self.sigma = (1 - alpha.square()).sqrt()  # (T,)

    @staticmethod
    @abstractmethod
    def betas(config: Any) -> Tensor:
        """Return the betas (T,) in float64."""

    def level(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Level:
        """Return the levels at integer timesteps `t`."""
        table = torch.stack([self.alpha, self.sigma]).to(dtype).to(t.device)
        alpha, sigma = table[:, t]
        return Level(alpha, sigma, t)

    def sample(self, uniform: Tensor) -> Level:
        """Return the training levels at t = floor(u T)."""
        total = self.config.num_train_timesteps
        return self.level((uniform * total).long().clamp(max=total - 1))  # the product may round up to the total

    def chain(self) -> Grid:
        """Return every training timestep, noisiest first, and the image: the Markov chain of Ho et al. 2020."""
        timesteps = torch.arange(self.config.num_train_timesteps).flip(0)
        return Grid((*(self.level(t, torch.float64) for t in timesteps), clean_level()))

    def grid(self, steps: int, spacing: str | None = None) -> Grid:
        """Return the levels of sampling in `steps` steps, at most as many as training timesteps."""
        return grids.make_grid(self, steps, spacing)

    def grid_at(self, timesteps: Sequence[float]) -> Grid:
        """Return the levels at the given decreasing timesteps, which may lie between those of training."""
        return grids.grid_at(self, timesteps)

    @classmethod
    def scheduler_classes(cls) -> tuple[str, ...]:
        """Return names of diffusers' discrete schedulers."""
        return tuple(schedulers.SCHEDULERS) if cls.diffusers_name else super().scheduler_classes()

    @classmethod
    def scheduler_class(cls, config: DiffusionConfig) -> str:
        """Name of diffusers' discrete scheduler that supports the options."""
        if cls.diffusers_name is None:
            return super().scheduler_class(config)
        return schedulers.table_scheduler(config, cls.diffusers_name)

    @classmethod
    def reads(cls, fields: Fields) -> bool:
        """Return whether these are fields of a discrete scheduler with the same `beta_schedule`."""
        return super().reads(fields) and schedulers.beta_schedule(fields) == cls.diffusers_name

    @classmethod
    def to_fields(cls, config: DiffusionConfig) -> Fields:
        """Convert the diffusion section to the fields of the discrete scheduler that supports its options."""
        if cls.diffusers_name is None:
            return super().to_fields(config)
        return schedulers.table_to_fields(config, cls.diffusers_name)

    @classmethod
    def from_fields(cls, fields: Fields, where: Path) -> Fields:
        """Convert the fields of a discrete scheduler to options of the diffusion section."""
        if cls.diffusers_name is None:
            return super().from_fields(fields, where)
        ours = schedulers.table_from_fields(fields, where)
        kind = next(name for name, schedule in SCHEDULES.items() if schedule is cls)
        schedule = {name: value for name, value in ours["schedule"].items() if name in cls.section.model_fields}
        return ours | {"schedule": schedule | {"kind": kind}}


def rescale_zero_terminal_snr(alpha: Tensor) -> Tensor:
    """Shift and scale alpha (T,) so that the last is exactly 0 and the first stays (Lin et al. 2024, algorithm 1)."""
    return (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))


class Linear(TableSchedule):
    """Betas that increase linearly (Ho et al. 2020, section 4)."""

    diffusers_name = "linear"

    @staticmethod
    def betas(config: BetaConfig) -> Tensor:
        """Return the betas (T,)."""
        return torch.linspace(config.beta_start, config.beta_end, config.num_train_timesteps, dtype=torch.float64)


class ScaledLinear(TableSchedule):
    """Betas whose square roots increase linearly (Rombach et al. 2022, released code)."""

    diffusers_name = "scaled_linear"

    @staticmethod
    def betas(config: BetaConfig) -> Tensor:
        """Return the betas (T,)."""
        start, end = math.sqrt(config.beta_start), math.sqrt(config.beta_end)
        return torch.linspace(start, end, config.num_train_timesteps, dtype=torch.float64).square()


class Cosine(TableSchedule):
    """Signal that falls as a squared cosine (Nichol and Dhariwal 2021, eq. 17), offset s = 0.008, betas capped."""

    section = TableConfig
    diffusers_name = "squaredcos_cap_v2"

    @staticmethod
    def betas(config: TableConfig) -> Tensor:
        """Return the betas (T,)."""
        time = torch.linspace(0, 1, config.num_train_timesteps + 1, dtype=torch.float64)
        signal = torch.cos((time + 0.008) / 1.008 * math.pi / 2).square()
        return (1 - signal[1:] / signal[:-1]).clamp(max=0.999)


class Sigmoid(TableSchedule):
    """Betas on a logistic curve from -6 to 6 (Xu et al. 2022, GeoDiff, released code), as in diffusers.

    Jabri et al. 2023 use the same name for a schedule in which alpha^2 is such a curve.
    """

    diffusers_name = "sigmoid"

    @staticmethod
    def betas(config: BetaConfig) -> Tensor:
        """Return the betas (T,)."""
        curve = torch.linspace(-6, 6, config.num_train_timesteps, dtype=torch.float64).sigmoid()
        return config.beta_start + (config.beta_end - config.beta_start) * curve
