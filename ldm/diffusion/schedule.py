"""Schedules: tables of (alpha, sigma) over the training timesteps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ldm.config.diffusion import ScheduleConfig
from ldm.diffusion import grids
from ldm.diffusion.flow import RectifiedFlow
from ldm.diffusion.level import Grid, Level, clean_level


class NoiseSchedule(Protocol):
    """What training, sampling and the variational bound ask of a schedule of any kind."""

    config: ScheduleConfig

    def level(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Level:
        """The levels at which the network is told `t`, in its shape and on its device."""

    def sample(self, uniform: Tensor) -> Level:
        """Levels for training, in float32, from uniform numbers (B,) in [0, 1)."""

    def grid(self, steps: int, spacing: str | None = None) -> Grid:
        """The levels that sampling visits in so many steps, in float64, by default with the schedule's own spacing."""

    def grid_at(self, timesteps: Sequence[float]) -> Grid:
        """The levels that sampling visits at given falling timesteps, in float64."""

    def chain(self) -> Grid:
        """All steps of the diffusion process, the last of which ends at the image itself, in float64."""


def make_schedule(config: ScheduleConfig) -> NoiseSchedule:
    """The schedule of a configuration."""
    return _schedules[config.kind](config)


class Schedule:
    """The variance-preserving levels of a discrete diffusion, computed in float64.

    alpha_t = sqrt(prod_{s <= t} (1 - beta_s)), sigma_t = sqrt(1 - alpha_t^2) (Ho et al. 2020, eq. 4).
    """

    def __init__(self, config: ScheduleConfig) -> None:
        self.config = config
        alpha = (1 - _betas[config.kind](config)).cumprod(0).sqrt()
        if config.zero_terminal_snr:
            alpha = rescale_zero_terminal_snr(alpha)
        self.alpha = alpha  # (T,)
        self.sigma = (1 - alpha.square()).sqrt()  # (T,)

    def level(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Level:
        """The levels at integer timesteps `t` of any shape, on its device."""
        table = torch.stack([self.alpha, self.sigma]).to(dtype).to(t.device)
        alpha, sigma = table[:, t]
        return Level(alpha, sigma, t)

    def sample(self, uniform: Tensor) -> Level:
        """Levels for training, t = floor(u T), from uniform numbers (B,) in [0, 1)."""
        total = self.config.num_train_timesteps
        return self.level((uniform * total).long().clamp(max=total - 1))  # the product may round up to the total

    def chain(self) -> Grid:
        """Every training timestep, noisiest first, and the image itself: the Markov chain of Ho et al. 2020."""
        timesteps = torch.arange(self.config.num_train_timesteps).flip(0)
        return Grid((*(self.level(t, torch.float64) for t in timesteps), clean_level()))

    def grid(self, steps: int, spacing: str | None = None) -> Grid:
        """The levels that sampling visits in so many steps, in float64, by default with the schedule's own spacing.

        Raises UserError for an unknown spacing, and when the schedule does not have so many steps.
        """
        return grids.make_grid(self, steps, spacing)

    def grid_at(self, timesteps: Sequence[float]) -> Grid:
        """The levels that sampling visits at given falling timesteps, which may lie between those of training.

        Raises UserError unless they fall and lie in the schedule.
        """
        return grids.grid_at(self, timesteps)


def rescale_zero_terminal_snr(alpha: Tensor) -> Tensor:
    """Shift and scale alpha (T,) so that the last is exactly 0 and the first stays (Lin et al. 2024, algorithm 1)."""
    return (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))


# --- betas (T,) -------------------------------------------------------------------------------------------------------


def _linear(config: ScheduleConfig) -> Tensor:
    """Ho et al. 2020, section 4."""
    return torch.linspace(config.beta_start, config.beta_end, config.num_train_timesteps, dtype=torch.float64)


def _scaled_linear(config: ScheduleConfig) -> Tensor:
    """Linear in the square root, the schedule of latent diffusion (Rombach et al. 2022, their released code)."""
    start, end = math.sqrt(config.beta_start), math.sqrt(config.beta_end)
    return torch.linspace(start, end, config.num_train_timesteps, dtype=torch.float64).square()


def _cosine(config: ScheduleConfig) -> Tensor:
    """Nichol and Dhariwal 2021, eq. 17, with its offset s = 0.008 and its cap on beta."""
    time = torch.linspace(0, 1, config.num_train_timesteps + 1, dtype=torch.float64)
    signal = torch.cos((time + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - signal[1:] / signal[:-1]).clamp(max=0.999)


def _sigmoid(config: ScheduleConfig) -> Tensor:
    """A logistic curve from -6 to 6 between the first and the last beta (Xu et al. 2022, GeoDiff, their released code).

    The field has another schedule of that name, in which alpha^2 is the curve (Jabri et al. 2023); this is the one
    that diffusers knows.
    """
    curve = torch.linspace(-6, 6, config.num_train_timesteps, dtype=torch.float64).sigmoid()
    return config.beta_start + (config.beta_end - config.beta_start) * curve


_betas: dict[str, Callable[[ScheduleConfig], Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "cosine": _cosine,
    "sigmoid": _sigmoid,
}

_schedules: dict[str, Callable[[ScheduleConfig], NoiseSchedule]] = {
    **dict.fromkeys(_betas, Schedule),
    "flow": RectifiedFlow,
}
