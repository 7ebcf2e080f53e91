"""Noise levels, predictions and weightings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ldm.config.section import Section


class ScheduleConfig(Section):
    """The noise levels: betas over `num_train_timesteps`, by default Stable Diffusion's."""

    kind: Literal["linear", "scaled_linear", "cosine"] = "scaled_linear"
    num_train_timesteps: int = Field(1000, ge=2)
    beta_start: float = 0.00085
    beta_end: float = 0.012
    zero_terminal_snr: bool = False
    spacing: Literal["leading", "trailing", "linspace", "fractional", "karras", "exponential"] = "leading"
    steps_offset: int = 1
    set_alpha_to_one: bool = False


class WeightingConfig(Section):
    """How much each noise level counts in the loss."""

    kind: Literal["uniform", "min_snr"] = "uniform"
    gamma: float = 5.0  # min_snr: SNR above which levels count no more


class DiffusionConfig(Section):
    """Schedule, what the network regresses, and how levels are weighted."""

    schedule: ScheduleConfig = ScheduleConfig()
    prediction: Literal["eps", "x0", "v", "flow"] = "eps"
    weighting: WeightingConfig = WeightingConfig()

    @model_validator(mode="after")
    def _eps_needs_signal(self) -> DiffusionConfig:
        if self.prediction == "eps" and self.schedule.zero_terminal_snr:
            raise ValueError(
                "prediction eps says nothing about the picture where alpha is 0: with schedule.zero_terminal_snr "
                "use prediction v, x0 or flow"
            )
        return self
