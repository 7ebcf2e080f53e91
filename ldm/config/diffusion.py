"""Noise levels, predictions and weightings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ldm.config.section import Section

BETA_KINDS = ("linear", "scaled_linear", "sigmoid")  # schedules made of betas between a first and a last one
TABLE_KINDS = (*BETA_KINDS, "cosine")  # schedules that are a table over the training timesteps


def _refuse_strangers(section: Section, choice: str, owners: tuple[str, ...], *names: str) -> None:
    """Raise ValueError for one of the options `names` that is changed although `choice` is none of `owners`."""
    chosen = getattr(section, choice)
    for name in names:
        if chosen not in owners and getattr(section, name) != type(section).model_fields[name].default:
            raise ValueError(f"{name} means something for {choice} {', '.join(owners)} alone, not for {chosen}")


class ScheduleConfig(Section):
    """The noise levels, by default Stable Diffusion's.

    `beta_start` and `beta_end` belong to the kinds linear, scaled_linear and sigmoid; `zero_terminal_snr` and what
    shapes the sampling grid (`spacing`, `steps_offset`, `set_alpha_to_one`) to all kinds but flow; `shift` and
    `training_times` to flow; `logit_mean` and `logit_std` to logit-normal times. One that is changed where it does
    not belong is refused.
    """

    kind: Literal["linear", "scaled_linear", "cosine", "sigmoid", "flow"] = "scaled_linear"
    num_train_timesteps: int = Field(1000, ge=2, le=100_000)
    beta_start: float = Field(0.00085, gt=0, lt=1)
    beta_end: float = Field(0.012, gt=0, lt=1)
    zero_terminal_snr: bool = False
    shift: float = Field(1.0, gt=0)  # above 1: more of the time is spent at much noise (Esser et al. 2024, eq. 23)
    training_times: Literal["uniform", "logit_normal"] = "uniform"
    logit_mean: float = 0.0
    logit_std: float = Field(1.0, gt=0)
    spacing: Literal["leading", "trailing", "linspace", "fractional", "karras", "exponential"] = "leading"
    steps_offset: int = Field(1, ge=0)
    set_alpha_to_one: bool = False

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> ScheduleConfig:
        _refuse_strangers(self, "kind", BETA_KINDS, "beta_start", "beta_end")
        _refuse_strangers(self, "kind", TABLE_KINDS, "zero_terminal_snr", "spacing", "steps_offset", "set_alpha_to_one")
        _refuse_strangers(self, "kind", ("flow",), "shift", "training_times")
        _refuse_strangers(self, "training_times", ("logit_normal",), "logit_mean", "logit_std")
        return self


class WeightingConfig(Section):
    """How much each noise level counts in the loss."""

    kind: Literal["uniform", "min_snr", "soft_min_snr", "p2", "vlb"] = "uniform"
    gamma: float = Field(
        5.0, gt=0
    )  # min_snr, soft_min_snr: SNR above which levels count no more (soft: 4 in its paper)
    p2_gamma: float = Field(1.0, ge=0)  # p2: how much levels of high SNR are played down; 0: not at all
    p2_k: float = Field(1.0, gt=0)  # p2: SNR above which they are

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> WeightingConfig:
        _refuse_strangers(self, "kind", ("min_snr", "soft_min_snr"), "gamma")
        _refuse_strangers(self, "kind", ("p2",), "p2_gamma", "p2_k")
        return self


class DiffusionConfig(Section):
    """Schedule, what the network regresses, and how levels are weighted."""

    schedule: ScheduleConfig = ScheduleConfig()
    prediction: Literal["eps", "x0", "v", "flow"] = "eps"
    weighting: WeightingConfig = WeightingConfig()
    learned_variance: bool = False  # twice the output channels: prediction, then variance (Nichol and Dhariwal 2021)
    offset_noise: float = Field(
        0.0, ge=0
    )  # deviation of a constant added to each channel of the noise (Guttenberg 2023)
    input_perturbation: float = Field(0.0, ge=0)  # deviation of noise on the noise of the input (Ning et al. 2023)

    @model_validator(mode="after")
    def _eps_needs_signal(self) -> DiffusionConfig:
        if self.prediction == "eps" and self.schedule.zero_terminal_snr:
            raise ValueError(
                "prediction eps says nothing about the image where alpha is 0: with schedule.zero_terminal_snr "
                "use prediction v, x0 or flow"
            )
        if self.prediction == "eps" and self.schedule.kind == "flow":
            raise ValueError(
                "prediction eps says nothing about the image where alpha is 0, as schedule.kind flow starts: "
                "use prediction flow, v or x0"
            )
        return self

    @model_validator(mode="after")
    def _bound_needs_timesteps(self) -> DiffusionConfig:
        for name, asked in (
            ("learned_variance", self.learned_variance),
            ("weighting.kind vlb", self.weighting.kind == "vlb"),
        ):
            if asked and self.schedule.kind == "flow":
                raise ValueError(
                    f"{name} comes from the bound over steps between timesteps: schedule.kind flow has none"
                )
        return self
