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
)
from ldm.config import DiffusionConfig, ScheduleConfig, WeightingConfig, parse

BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction", "flow": "flow_prediction"}

# The schedulers that Stable Diffusion's checkpoints come with, and their defaults where they differ.
SCHEDULERS: dict[str, Fields] = {
    "DDIMScheduler": {"clip_sample": True},
    "DDPMScheduler": {"clip_sample": True},
    "PNDMScheduler": {"set_alpha_to_one": False, "skip_prk_steps": False},
}
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
}


def scheduler_to_fields(config: DiffusionConfig) -> Fields:
    """`scheduler_config.json` of diffusers' DDIMScheduler, which itself refuses to sample with prediction `flow`."""
    schedule = config.schedule
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        "num_train_timesteps": schedule.num_train_timesteps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": BETA_SCHEDULES[schedule.kind],
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        "timestep_spacing": schedule.spacing,
        "steps_offset": schedule.steps_offset,
        "set_alpha_to_one": schedule.set_alpha_to_one,
        "prediction_type": PREDICTIONS[config.prediction],
        "clip_sample": False,
        "thresholding": False,
        "trained_betas": None,
        EXTRA: {"weighting": config.weighting.model_dump(mode="json")},
    }


def scheduler_from_fields(fields: Fields, where: Path) -> DiffusionConfig:
    """Schedule and prediction of a scheduler; UserError names a field that cannot be had."""
    expect_class(fields, tuple(SCHEDULERS), where)
    theirs = known_fields(SCHEDULERS[fields["_class_name"]] | fields, DEFAULTS, FIXED, where)
    schedule = {name: theirs[name] for name in theirs.keys() & ScheduleConfig.model_fields.keys()} | {
        "kind": key_of(BETA_SCHEDULES, "beta_schedule", theirs, where),
        "zero_terminal_snr": theirs["rescale_betas_zero_snr"],
        "spacing": theirs["timestep_spacing"],
    }
    ours = {
        "schedule": schedule,
        "prediction": key_of(PREDICTIONS, "prediction_type", theirs, where),
        "weighting": extra(fields).get("weighting", WeightingConfig().model_dump()),
    }
    return parse(ours, DiffusionConfig, str(where))
