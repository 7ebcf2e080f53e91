"""`scheduler_config.json` of diffusers <-> the schedule and the prediction."""

from __future__ import annotations

from pathlib import Path

from ldm.checkpoint.fields import (
    DIFFUSERS_VERSION,
    EXTRA,
    Fields,
    Fixed,
    expect_class,
    extra,
    key_of,
    known_fields,
    refused,
)
from ldm.config import DiffusionConfig, ScheduleConfig, WeightingConfig, parse
from ldm.errors import UserError

BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction", "flow": "flow_prediction"}

# The schedulers that Stable Diffusion's checkpoints come with, and their defaults where they differ.
SCHEDULERS: dict[str, Fields] = {
    "DDIMScheduler": {"clip_sample": True},
    "DDPMScheduler": {"clip_sample": True},
    "PNDMScheduler": {"set_alpha_to_one": False, "skip_prk_steps": False},
    "EulerDiscreteScheduler": {"timestep_spacing": "linspace"},
    "EulerAncestralDiscreteScheduler": {"timestep_spacing": "linspace"},
    "HeunDiscreteScheduler": {"timestep_spacing": "linspace", "beta_start": 0.00085, "beta_end": 0.012},
}
BETWEEN_TIMESTEPS = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler")
SPACING_FLAGS = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential"}
DEFAULTS: Fields = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "set_alpha_to_one": True,
    "rescale_betas_zero_snr": False,
    "final_sigmas_type": "zero",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "dynamic_thresholding_ratio": 0.995,  # these three belong to clip_sample and thresholding
    "clip_sample_range": 1.0,
    "sample_max_value": 1.0,
}
FIXED: Fixed = {
    "clip_sample": (False,),
    "thresholding": (False,),
    "trained_betas": (None,),
    "skip_prk_steps": (True,),
    "variance_type": ("fixed_small",),
    "use_beta_sigmas": (False, None),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
}


def scheduler_to_fields(config: DiffusionConfig) -> Fields:
    """`scheduler_config.json` of diffusers' DDIMScheduler, or EulerDiscreteScheduler for levels between timesteps.

    Both refuse to sample with prediction `flow` themselves.
    """
    schedule = config.schedule
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        "num_train_timesteps": schedule.num_train_timesteps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": BETA_SCHEDULES[schedule.kind],
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        "steps_offset": schedule.steps_offset,
        "prediction_type": PREDICTIONS[config.prediction],
        "trained_betas": None,
        **_spacing_to_fields(schedule),
        EXTRA: {"weighting": config.weighting.model_dump(mode="json")},
    }


def _spacing_to_fields(schedule: ScheduleConfig) -> Fields:
    if schedule.spacing in ("fractional", *SPACING_FLAGS.values()):
        return {
            "_class_name": "EulerDiscreteScheduler",
            "timestep_spacing": "linspace",
            "final_sigmas_type": "zero" if schedule.set_alpha_to_one else "sigma_min",
            **{flag: schedule.spacing == spacing for flag, spacing in SPACING_FLAGS.items()},
        }
    return {
        "timestep_spacing": schedule.spacing,
        "set_alpha_to_one": schedule.set_alpha_to_one,
        "clip_sample": False,
        "thresholding": False,
    }


def scheduler_from_fields(fields: Fields, where: Path) -> DiffusionConfig:
    """Schedule and prediction of a scheduler; UserError names a field that cannot be had."""
    expect_class(fields, tuple(SCHEDULERS), where)
    theirs = known_fields(SCHEDULERS[fields["_class_name"]] | fields, DEFAULTS, FIXED, where)
    schedule = {name: theirs[name] for name in theirs.keys() & ScheduleConfig.model_fields.keys()} | {
        "kind": key_of(BETA_SCHEDULES, "beta_schedule", theirs, where),
        "zero_terminal_snr": theirs["rescale_betas_zero_snr"],
    }
    schedule |= _spacing_from_fields(fields["_class_name"], theirs, where)
    ours = {
        "schedule": schedule,
        "prediction": key_of(PREDICTIONS, "prediction_type", theirs, where),
        "weighting": extra(fields).get("weighting", WeightingConfig().model_dump()),
    }
    return parse(ours, DiffusionConfig, str(where))


def _spacing_from_fields(name: str, theirs: Fields, where: Path) -> Fields:
    """`spacing` and `set_alpha_to_one` as the class `name` understands its fields."""
    flags = [flag for flag in SPACING_FLAGS if theirs[flag]]
    if name not in BETWEEN_TIMESTEPS:
        if flags:
            raise refused(flags[0], theirs[flags[0]], where)
        return {"spacing": theirs["timestep_spacing"]}
    if theirs["final_sigmas_type"] not in ("zero", "sigma_min"):
        raise refused("final_sigmas_type", theirs["final_sigmas_type"], where)
    spacing = {"linspace": "fractional"}.get(theirs["timestep_spacing"], theirs["timestep_spacing"])
    if flags:
        if spacing != "fractional":  # theirs then span a part of the schedule, ours all of it
            raise UserError(f"{where}: ldm has the field {flags[0]} with timestep_spacing linspace alone")
        spacing = SPACING_FLAGS[flags[0]]
    return {"spacing": spacing, "set_alpha_to_one": theirs["final_sigmas_type"] == "zero"}
