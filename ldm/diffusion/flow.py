"""Rectified flow: the straight path from image to noise, in continuous time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ldm.config.diffusion import DiffusionConfig, ScheduleConfig
from ldm.diffusion.grids import check_timesteps
from ldm.diffusion.level import Grid, Level, clean_level
from ldm.diffusion.schedule import NoiseSchedule
from ldm.diffusion.schedulers import unsupported
from ldm.errors import UserError
from ldm.storage.fields import EXTRA, Fields, Fixed, extra, known_fields

SCHEDULER = "FlowMatchEulerDiscreteScheduler"
DEFAULTS: Fields = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "base_shift": 0.5,  # these five are used with use_dynamic_shifting only
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "time_shift_type": "exponential",
}
FIXED: Fixed = {
    "use_dynamic_shifting": (False,),
    "invert_sigmas": (False,),
    "shift_terminal": (None,),
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "stochastic_sampling": (False,),
}
TRAINING_TIMES = {"training_times", "logit_mean", "logit_std"}  # options that diffusers' class does not have


class FlowConfig(ScheduleConfig):
    """Options of a rectified flow."""

    continuous: ClassVar[bool] = True

    kind: str = "flow"
    shift: float = Field(1.0, gt=0)  # above 1: more of the time is spent at high noise (Esser et al. 2024, eq. 23)
    training_times: Literal["uniform", "logit_normal"] = "uniform"
    logit_mean: float = 0.0  # of logit_normal training times
    logit_std: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _check_training_times(self) -> FlowConfig:
        for name in ("logit_mean", "logit_std"):
            if self.training_times == "uniform" and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is an option of training_times logit_normal, not of uniform")
        return self

    @property
    def starts_from_noise(self) -> bool:
        """Whether the noisiest level has no signal (alpha is 0)."""
        return True


class RectifiedFlow(NoiseSchedule):
    """Levels alpha = 1 - s, sigma = s at times s from 0 to 1 (Liu et al. 2023, eq. 1).

    The network's time is t = s * num_train_timesteps, a real number, as in Stable Diffusion 3. In training and in
    sampling, times are shifted to s' = shift * s / (1 + (shift - 1) * s) (Esser et al. 2024, eq. 23).
    """

    section = FlowConfig
    config: FlowConfig

    def level(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Level:
        """Return the levels at real `t` from 0 to num_train_timesteps; their own t is float32."""
        time = t.double() / self.config.num_train_timesteps
        return Level((1 - time).to(dtype), time.to(dtype), t.float())

    def sample(self, uniform: Tensor) -> Level:
        """Return training levels at the quantiles `uniform` of the distribution of training times.

        Time 0, where there is nothing to denoise, is replaced by the machine epsilon of float64.
        """
        time = uniform.double()
        if self.config.training_times == "logit_normal":  # log(s / (1 - s)) is normal (Esser et al. 2024, eq. 19)
            time = torch.sigmoid(self.config.logit_mean + self.config.logit_std * torch.special.ndtri(time))
        time = self._shifted(time.clamp(min=torch.finfo(time.dtype).eps))
        return self.level(time * self.config.num_train_timesteps)

    def grid(self, steps: int, spacing: str | None = None) -> Grid:
        """Return the levels of diffusers' Euler scheduler for flows; there is no `spacing`.

        Times decrease evenly from 1 to the last of `chain` and are then shifted (so that the last is shifted twice);
        the image follows.
        """
        if steps < 1:
            raise UserError(f"{steps} sampling steps: give 1 or more")
        if spacing is not None:
            raise UserError(f"spacing {spacing} does not apply to a rectified flow: schedule.shift spaces its steps")
        last = self._shifted(torch.tensor(1 / self.config.num_train_timesteps, dtype=torch.float64))
        return self._grid(torch.linspace(1, last.item(), steps, dtype=torch.float64))

    def grid_at(self, timesteps: Sequence[float]) -> Grid:
        """Return the levels at decreasing t from num_train_timesteps to 0, and the image after them."""
        check_timesteps(timesteps)
        if timesteps[0] > self.config.num_train_timesteps:
            raise UserError(f"timestep {timesteps[0]:g}: the flow begins at {self.config.num_train_timesteps}")
        t = torch.tensor(timesteps, dtype=torch.float64)
        return self._levels(t)

    def chain(self) -> Grid:
        """Return levels at num_train_timesteps evenly spaced times from 1, shifted, and the image itself."""
        total = self.config.num_train_timesteps
        return self._grid(torch.arange(total, 0, -1, dtype=torch.float64) / total)

    def _grid(self, times: Tensor) -> Grid:
        t = self._shifted(times) * self.config.num_train_timesteps  # (steps,)
        return self._levels(t)

    def _levels(self, t: Tensor) -> Grid:
        """Return the levels at decreasing t (steps,) and the image after them."""

        def by_ratio(ratio: Tensor) -> Level:
            return self.level(ratio / (1 + ratio) * self.config.num_train_timesteps, torch.float64)

        return Grid((*(self.level(at, torch.float64) for at in t), clean_level()), by_ratio=by_ratio)

    def _shifted(self, time: Tensor) -> Tensor:
        shift = self.config.shift
        return shift * time / (1 + (shift - 1) * time)

    @classmethod
    def scheduler_classes(cls) -> tuple[str, ...]:
        """Name of diffusers' Euler scheduler for flows."""
        return (SCHEDULER,)

    @classmethod
    def scheduler_class(cls, config: DiffusionConfig) -> str:
        """Name of diffusers' Euler scheduler for flows."""
        return SCHEDULER

    @classmethod
    def to_fields(cls, config: DiffusionConfig) -> Fields:
        """Convert the diffusion section to fields of diffusers' Euler scheduler for flows."""
        if config.prediction != "flow":
            raise unsupported("prediction", config.prediction, "flow", SCHEDULER)
        ours = config.schedule.model_dump(mode="json")
        return {
            "num_train_timesteps": ours["num_train_timesteps"],
            "shift": ours["shift"],
            EXTRA: {name: ours[name] for name in TRAINING_TIMES},
        }

    @classmethod
    def from_fields(cls, fields: Fields, where: Path) -> Fields:
        """Convert fields of diffusers' Euler scheduler for flows to options of the diffusion section."""
        theirs = known_fields(fields, DEFAULTS, FIXED, where)
        times = {name: value for name, value in extra(fields).items() if name in TRAINING_TIMES}
        sizes = {name: theirs[name] for name in ("num_train_timesteps", "shift")}
        return {"schedule": {"kind": "flow", **sizes, **times}, "prediction": "flow"}
