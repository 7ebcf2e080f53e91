"""The discrete schedulers of diffusers <-> options of schedules that are tables over the training timesteps.

A scheduler's folder determines the schedule and the prediction; the request chooses the sampler. So fields that shape
a step (`SAMPLING`) may have any value, and those that change the levels or the predicted image are read or rejected.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldm.config.diffusion import DiffusionConfig
from ldm.diffusion.scheduler_classes import (
    CLIPS,
    DEFAULTS,
    LEARNED,
    SCHEDULERS,
    SPACING_FLAGS,
    VARIANCES,
)
from ldm.errors import UserError
from ldm.registry import PREDICTIONS
from ldm.storage.fields import Fields, known_fields, refused

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

    Only DDPMScheduler has sigmoid and other variances than the small one, only EulerDiscreteScheduler levels
    between timesteps.
    """
    if beta_schedule == "sigmoid" or config.learned_variance or config.variance == "large":
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
        **_clipping_fields(config),
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
        **_clipping_fields(config),
        "variance_type": LEARNED if config.learned_variance else VARIANCES[config.variance],
    }


def _clipping_fields(config: DiffusionConfig) -> Fields:
    clipping = config.clipping
    if clipping is None:
        return {"clip_sample": False, "thresholding": False}
    if clipping.quantile is None:
        return {"clip_sample": True, "clip_sample_range": clipping.limit, "thresholding": False}
    thresholds = {"dynamic_thresholding_ratio": clipping.quantile, "sample_max_value": clipping.limit}
    return {"clip_sample": False, "thresholding": True, **thresholds}


def _euler_fields(config: DiffusionConfig) -> Fields:
    schedule: Any = config.schedule
    if config.clipping is not None:
        raise unsupported("clipping", "set", "null, or schedule.spacing to leading", "EulerDiscreteScheduler")
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
        "learned_variance": theirs["variance_type"] == LEARNED,
        "variance": "large" if theirs["variance_type"] == VARIANCES["large"] else "small",
        "clipping": _clipping({name: theirs[name] and name in scheduler.clips for name in CLIPS}, theirs),
    }


def _clipping(flags: Fields, theirs: Fields) -> Fields | None:
    """Return the section of clipping; thresholding takes precedence."""
    if flags["thresholding"]:
        return {"limit": theirs["sample_max_value"], "quantile": theirs["dynamic_thresholding_ratio"]}
    return {"limit": theirs["clip_sample_range"]} if flags["clip_sample"] else None


def unsupported(option: str, value: object, needed: object, name: str) -> UserError:
    """Return the error for an option of the diffusion section that a class of diffusers does not have."""
    return UserError(f"diffusion.{option} is {value}, which {name} of diffusers does not support: set it to {needed}")
