"""The section `diffusion`: noise schedule, prediction and loss weighting."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny, model_validator

from ldm.config.section import ByKind, NameOf, Section
from ldm.registry import PREDICTIONS, SCHEDULES, WEIGHTINGS


class ScheduleConfig(Section):
    """Options that all noise schedules have; the section of each kind adds its own."""

    continuous: ClassVar[bool] = False  # no discrete steps, over which the variational bound could be summed

    kind: str
    num_train_timesteps: int = Field(1000, ge=2, le=100_000)

    @property
    def starts_from_noise(self) -> bool:
        """Whether the noisiest level has no signal (alpha is 0)."""
        return False


class WeightingConfig(Section):
    """Options that all loss weightings have; the section of each kind adds its own."""

    kind: str = "uniform"


_schedule = ByKind(SCHEDULES, "scaled_linear", ignore_defaults=True)
_weighting = ByKind(WEIGHTINGS, "uniform", ignore_defaults=True)


def schedule_config(**options: Any) -> ScheduleConfig:
    """Return the section of a schedule's `kind`, by default Stable Diffusion's."""
    section: ScheduleConfig = _schedule.parse({"kind": "scaled_linear", **options})
    return section


def weighting_config(**options: Any) -> WeightingConfig:
    """Return the section of a weighting's `kind`, by default uniform."""
    section: WeightingConfig = _weighting.parse({"kind": "uniform", **options})
    return section


class ClippingConfig(Section):
    """Clipping of the images predicted in each step of sampling."""

    limit: float = Field(1.0, gt=0)  # images are clipped to [-limit, limit]
    # Dynamic thresholding (Saharia et al. 2022): clip to this quantile of an image's magnitudes, clamped to [1, limit],
    # and divide by it.
    quantile: float | None = Field(None, gt=0, le=1)


class DiffusionConfig(Section):
    """Noise schedule, regression target of the network, and weight of each level in the loss."""

    schedule: Annotated[SerializeAsAny[ScheduleConfig], _schedule] = Field(default_factory=schedule_config)
    prediction: Annotated[str, NameOf(PREDICTIONS)] = "eps"
    weighting: Annotated[SerializeAsAny[WeightingConfig], _weighting] = Field(default_factory=weighting_config)
    learned_variance: bool = False  # twice the output channels: prediction, then variance (Nichol and Dhariwal 2021)
    variance: Literal["small", "large"] = "small"  # of sampler ddpm, unless it is learned (Ho et al. 2020, section 3.2)
    clipping: ClippingConfig | None = None  # of predicted images in sampling; None: they are not clipped
    offset_noise: float = Field(0.0, ge=0)  # std of a constant added to each channel of the noise (Guttenberg 2023)
    input_perturbation: float = Field(0.0, ge=0)  # std of noise added to the noise of the input (Ning et al. 2023)

    @model_validator(mode="after")
    def _check_prediction(self) -> DiffusionConfig:
        if self.schedule.starts_from_noise and PREDICTIONS[self.prediction].needs_signal:
            others = ", ".join(name for name, prediction in PREDICTIONS.items() if not prediction.needs_signal)
            raise ValueError(
                f"prediction {self.prediction} cannot recover the image from pure noise, where schedule.kind "
                f"{self.schedule.kind} with these options starts: use one of {others}"
            )
        return self

    @model_validator(mode="after")
    def _check_variance(self) -> DiffusionConfig:
        if self.learned_variance and self.variance != "small":
            raise ValueError(f"variance {self.variance} has no effect with learned_variance: leave one of them out")
        return self

    @model_validator(mode="after")
    def _check_bound(self) -> DiffusionConfig:
        needs_bound = WEIGHTINGS[self.weighting.kind].needs_bound
        for name, used in (
            ("learned_variance", self.learned_variance),
            ("variance large", self.variance == "large"),
            (f"weighting.kind {self.weighting.kind}", needs_bound),
        ):
            if used and self.schedule.continuous:
                raise ValueError(f"{name} needs discrete timesteps, which schedule.kind {self.schedule.kind} lacks")
        return self
