"""Rectified flow: the straight path from image to noise, in continuous time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldm.config.diffusion import ScheduleConfig
from ldm.diffusion.grids import check_timesteps
from ldm.diffusion.level import Grid, Level, clean_level
from ldm.errors import UserError


class RectifiedFlow:
    """Levels alpha = 1 - s, sigma = s at times s from 0 to 1 (Liu et al. 2023, eq. 1).

    The network is told t = s * num_train_timesteps, a real number, as that of Stable Diffusion 3 is. In training as
    in sampling, times are shifted to s' = shift * s / (1 + (shift - 1) * s) (Esser et al. 2024, eq. 23).
    """

    def __init__(self, config: ScheduleConfig) -> None:
        self.config = config

    def level(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Level:
        """The levels at `t` from 0 to num_train_timesteps, of any shape, on its device; their own t is float32."""
        time = t.double() / self.config.num_train_timesteps
        return Level((1 - time).to(dtype), time.to(dtype), t.float())

    def sample(self, uniform: Tensor) -> Level:
        """Levels for training from uniform numbers (B,) in [0, 1), through the quantile function of the times.

        Time 0, where there is nothing to denoise, becomes the smallest number that 1 can be told from.
        """
        time = _quantiles[self.config.training_times](self.config, uniform.double())
        return self._at(time.clamp(min=torch.finfo(time.dtype).eps))

    def grid(self, steps: int, spacing: str | None = None) -> Grid:
        """The levels that sampling visits in so many steps, in float64: those of diffusers' Euler scheduler for flows.

        Times fall evenly from 1 to the last of `chain`, are then shifted (so that the last is shifted twice), and no
        noise at all follows. Raises UserError when there is no step, and for any `spacing`: `shift` is what a flow has.
        """
        if steps < 1:
            raise UserError(f"{steps} sampling steps: give 1 or more")
        if spacing is not None:
            raise UserError(f"spacing {spacing}: a rectified flow has none, its times are spaced by its shift")
        last = self._shifted(torch.tensor(1 / self.config.num_train_timesteps, dtype=torch.float64))
        return self._grid(torch.linspace(1, last.item(), steps, dtype=torch.float64))

    def grid_at(self, timesteps: Sequence[float]) -> Grid:
        """The levels at given falling t from 0 to num_train_timesteps, and no noise at all after them, in float64.

        Raises UserError unless they fall and lie there.
        """
        check_timesteps(timesteps)
        if timesteps[0] > self.config.num_train_timesteps:
            raise UserError(f"timestep {timesteps[0]:g}: the flow begins at {self.config.num_train_timesteps}")
        t = torch.tensor(timesteps, dtype=torch.float64)
        return Grid((*(self.level(at, torch.float64) for at in t), clean_level()))

    def chain(self) -> Grid:
        """Levels at num_train_timesteps evenly spaced times from 1, shifted, and the image itself."""
        total = self.config.num_train_timesteps
        return self._grid(torch.arange(total, 0, -1, dtype=torch.float64) / total)

    def _grid(self, times: Tensor) -> Grid:
        t = self._shifted(times) * self.config.num_train_timesteps  # (steps,)
        return Grid((*(self.level(at, torch.float64) for at in t), clean_level()))

    def _at(self, time: Tensor) -> Level:
        return self.level(self._shifted(time) * self.config.num_train_timesteps)

    def _shifted(self, time: Tensor) -> Tensor:
        shift = self.config.shift
        return shift * time / (1 + (shift - 1) * time)


# --- the time below which a share u of the training times lies, (B,) --------------------------------------------------


def _uniform(config: ScheduleConfig, u: Tensor) -> Tensor:
    return u


def _logit_normal(config: ScheduleConfig, u: Tensor) -> Tensor:
    """log(s / (1 - s)) is normal (Esser et al. 2024, eq. 19)."""
    return torch.sigmoid(config.logit_mean + config.logit_std * torch.special.ndtri(u))


_quantiles: dict[str, Callable[[ScheduleConfig, Tensor], Tensor]] = {
    "uniform": _uniform,
    "logit_normal": _logit_normal,
}
