"""The discrete schedulers of diffusers <-> options of schedules that are tables over the training timesteps.

A scheduler's folder determines the schedule and the prediction; the request chooses the sampler. So fields that shape
a step (`SAMPLING`) may have any value, and those that change the levels or the predicted image are read or rejected.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ldm.config.diffusion import DiffusionConfig
from ldm.errors import UserError
from ldm.registry import PREDICTIONS
from ldm.storage.fields import Fields, Fixed, known_fields, refused

VARIANCES = {False: "fixed_small", True: "learned_range"}  # by learned_variance
SPACING_FLAGS = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential"}

SAMPLING: Fields = dict.fromkeys(
    (
        "solver_order",
        "solver_type",
        "solver_p",
        "algorithm_type",
        "lower_order_final",
        "euler_at_final",
        "predict_x0",
        "disable_corrector",
        "original_inference_steps",
    )
)
DEFAULTS: Fields = SAMPLING | {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "set_alpha_to_one": True,
    "rescale_betas_zero_snr": False,
    "variance_type": None,
    "final_sigmas_type": "zero",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "dynamic_thresholding_ratio": 0.995,  # these three are used with clip_sample and thresholding only
    "clip_sample_range": 1.0,
    "sample_max_value": 1.0,
    "flow_shift": 1.0,  # these two: with use_flow_sigmas and use_dynamic_shifting only
    "time_shift_type": "exponential",
}
FIXED: Fixed = {
    "clip_sample": (False,),
    "thresholding": (False,),
    "trained_betas": (None,),
    "skip_prk_steps": (True,),
    "variance_type": (None, VARIANCES[False]),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_dynamic_shifting": (False, None),
    "lambda_min_clipped": (-math.inf,),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "timestep_scaling": (10.0,),  # of the boundary condition of sampler lcm
    "tensor_format": ("pt",),  # files from before version 0.3
}

Spacing = Callable[[Fields, Path], str]
End = Callable[[Fields, Path], bool]


class Scheduler(NamedTuple):
    """One of diffusers' classes: its spacing in our names, whether it ends at the image, and its own defaults."""

    spacing: Spacing
    ends_at_image: End
    defaults: Fields
    variances: tuple[str | None, ...] = FIXED["variance_type"]

    @property
    def fixed(self) -> Fixed:
        """Fields that must have one of the given values where they are present."""
        return FIXED | {"variance_type": self.variances}


# --- the spacing: which levels a scheduler visits ---------------------------------------------------------------------


def _at_timesteps(theirs: Fields, where: Path) -> str:
    for flag in SPACING_FLAGS:
        if theirs[flag]:
            raise refused(flag, theirs[flag], where)
    return str(theirs["timestep_spacing"])


def _between_timesteps(theirs: Fields, where: Path) -> str:
    spacing = _even(theirs)
    for flag, spaced in SPACING_FLAGS.items():
        if theirs[flag]:
            if spacing != "fractional":  # theirs then span a part of the schedule, ours all of it
                raise UserError(f"{where}: ldm supports the field {flag} only with timestep_spacing linspace")
            return spaced
    return spacing


def _between_without_flags(theirs: Fields, where: Path) -> str:
    _at_timesteps(theirs, where)
    return _even(theirs)


def _even(theirs: Fields) -> str:
    spacing = str(theirs["timestep_spacing"])
    return "fractional" if spacing == "linspace" else spacing


def _multistep(theirs: Fields, where: Path) -> str:
    """Return the grid of multistep schedulers: the flags span the whole schedule, whatever the spacing."""
    return next((spaced for flag, spaced in SPACING_FLAGS.items() if theirs[flag]), str(theirs["timestep_spacing"]))


def _singlestep(theirs: Fields, where: Path) -> str:
    """Like multistep, with timestep_spacing linspace only."""
    return _multistep(theirs | {"timestep_spacing": "linspace"}, where)


def _distilled(theirs: Fields, where: Path) -> str:
    """Return every n-th of `original_inference_steps` from the noisiest: trailing if the steps divide that number."""
    return "trailing"


# --- the last level: the image itself, or the level of timestep 0 ---------------------------------------------------


def _by_flag(theirs: Fields, where: Path) -> bool:
    return bool(theirs["set_alpha_to_one"])


def _by_type(theirs: Fields, where: Path) -> bool:
    if theirs["final_sigmas_type"] not in ("zero", "sigma_min"):
        raise refused("final_sigmas_type", theirs["final_sigmas_type"], where)
    return bool(theirs["final_sigmas_type"] == "zero")


def _always(theirs: Fields, where: Path) -> bool:
    return True


def _never(theirs: Fields, where: Path) -> bool:
    return False


_LINSPACE: Fields = {"timestep_spacing": "linspace"}
_SMALL_BETAS: Fields = {"beta_start": 0.00085, "beta_end": 0.012}
_LEARNED = (None, *VARIANCES.values())

SCHEDULERS: dict[str, Scheduler] = {
    "DDIMScheduler": Scheduler(_at_timesteps, _by_flag, {"clip_sample": True}),
    "DDPMScheduler": Scheduler(_at_timesteps, _always, {"clip_sample": True}, _LEARNED),
    "PNDMScheduler": Scheduler(_at_timesteps, _by_flag, {"set_alpha_to_one": False, "skip_prk_steps": False}),
    "LCMScheduler": Scheduler(_distilled, _by_flag, _SMALL_BETAS | {"beta_schedule": "scaled_linear"}),
    "TCDScheduler": Scheduler(_distilled, _by_flag, _SMALL_BETAS | {"beta_schedule": "scaled_linear"}),
    "EulerDiscreteScheduler": Scheduler(_between_timesteps, _by_type, _LINSPACE),
    "EulerAncestralDiscreteScheduler": Scheduler(_between_without_flags, _always, _LINSPACE),
    "HeunDiscreteScheduler": Scheduler(_between_timesteps, _always, _LINSPACE | _SMALL_BETAS),
    "LMSDiscreteScheduler": Scheduler(_between_timesteps, _always, _LINSPACE),
    "KDPM2DiscreteScheduler": Scheduler(_between_timesteps, _always, _LINSPACE | _SMALL_BETAS),
    "KDPM2AncestralDiscreteScheduler": Scheduler(_between_timesteps, _always, _LINSPACE | _SMALL_BETAS),
    "DPMSolverMultistepScheduler": Scheduler(_multistep, _by_type, _LINSPACE, _LEARNED),
    "DPMSolverSinglestepScheduler": Scheduler(_singlestep, _by_type, _LINSPACE, _LEARNED),
    "UniPCMultistepScheduler": Scheduler(_multistep, _by_type, _LINSPACE),
    "DEISMultistepScheduler": Scheduler(_multistep, _never, _LINSPACE),
}

BETWEEN_TIMESTEPS = ("fractional", *SPACING_FLAGS.values())  # spacings with levels between those of training


def beta_schedule(fields: Fields) -> str | None:
    """Return the `beta_schedule` of the fields of one of the `SCHEDULERS`, None for another class.

    Only DDPMScheduler has sigmoid.
    """
    name = fields.get("_class_name")
    if name not in SCHEDULERS:
        return None
    kind = (DEFAULTS | SCHEDULERS[name].defaults | fields)["beta_schedule"]
    return None if kind == "sigmoid" and name != "DDPMScheduler" else str(kind)


def table_scheduler(config: DiffusionConfig, beta_schedule: str) -> str:
    """Return the class of diffusers that supports the options of a table.

    Only DDPMScheduler has sigmoid and a learned variance, only EulerDiscreteScheduler levels between timesteps.
    """
    if beta_schedule == "sigmoid" or config.learned_variance:
        return "DDPMScheduler"
    schedule: Any = config.schedule
    return "EulerDiscreteScheduler" if schedule.spacing in BETWEEN_TIMESTEPS else "DDIMScheduler"


def table_to_fields(config: DiffusionConfig, beta_schedule: str) -> Fields:
    """Convert the diffusion section to the fields of its `table_scheduler`.

    Except for the flow scheduler, diffusers does not sample with prediction flow; such folders load there one by one.
    """
    schedule: Any = config.schedule
    betas = schedule.model_dump(include={"beta_start", "beta_end"})
    return {
        "num_train_timesteps": schedule.num_train_timesteps,
        **({"beta_start": 0.00085, "beta_end": 0.012} | betas),  # written for all kinds, though cosine ignores them
        "beta_schedule": beta_schedule,
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        "steps_offset": schedule.steps_offset,
        "prediction_type": PREDICTIONS[config.prediction].diffusers_name,
        "trained_betas": None,
        **_own_fields[table_scheduler(config, beta_schedule)](config),
    }


def _ddim_fields(config: DiffusionConfig) -> Fields:
    schedule: Any = config.schedule
    return {
        "timestep_spacing": schedule.spacing,
        "set_alpha_to_one": schedule.set_alpha_to_one,
        "clip_sample": False,
        "thresholding": False,
    }


def _ddpm_fields(config: DiffusionConfig) -> Fields:
    schedule: Any = config.schedule
    if not schedule.set_alpha_to_one:
        raise unsupported("schedule.set_alpha_to_one", False, True, "DDPMScheduler")
    if config.prediction == "flow":
        raise unsupported("prediction", "flow", "eps, x0 or v", "DDPMScheduler")
    if schedule.spacing in BETWEEN_TIMESTEPS:
        raise unsupported("schedule.spacing", schedule.spacing, "leading, trailing or linspace", "DDPMScheduler")
    return {
        "timestep_spacing": schedule.spacing,
        "clip_sample": False,
        "thresholding": False,
        "variance_type": VARIANCES[config.learned_variance],
    }


def _euler_fields(config: DiffusionConfig) -> Fields:
    schedule: Any = config.schedule
    return {
        "timestep_spacing": "linspace",
        "final_sigmas_type": "zero" if schedule.set_alpha_to_one else "sigma_min",
        **{flag: schedule.spacing == spacing for flag, spacing in SPACING_FLAGS.items()},
    }


_own_fields: dict[str, Callable[[DiffusionConfig], Fields]] = {
    "DDIMScheduler": _ddim_fields,
    "DDPMScheduler": _ddpm_fields,
    "EulerDiscreteScheduler": _euler_fields,
}


def table_from_fields(fields: Fields, where: Path) -> Fields:
    """Convert the fields of one of the `SCHEDULERS` to options of the diffusion section, except `schedule.kind`."""
    scheduler = SCHEDULERS[fields["_class_name"]]
    theirs = known_fields(scheduler.defaults | fields, DEFAULTS, scheduler.fixed, where)
    predictions = {each.diffusers_name: name for name, each in PREDICTIONS.items()}
    if theirs["prediction_type"] not in predictions:
        raise refused("prediction_type", theirs["prediction_type"], where)
    return {
        "schedule": {
            **{name: theirs[name] for name in ("num_train_timesteps", "beta_start", "beta_end", "steps_offset")},
            "zero_terminal_snr": theirs["rescale_betas_zero_snr"],
            "spacing": scheduler.spacing(theirs, where),
            "set_alpha_to_one": scheduler.ends_at_image(theirs, where),
        },
        "prediction": predictions[theirs["prediction_type"]],
        "learned_variance": theirs["variance_type"] == VARIANCES[True],
    }


def unsupported(option: str, value: object, needed: object, name: str) -> UserError:
    """Return the error for an option of the diffusion section that a class of diffusers does not have."""
    return UserError(f"diffusion.{option} is {value}, which {name} of diffusers does not support: set it to {needed}")
