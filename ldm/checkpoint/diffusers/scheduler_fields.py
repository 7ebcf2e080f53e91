"""`scheduler_config.json` of diffusers <-> the schedule and the prediction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ldm.checkpoint.diffusers.schedulers import DEFAULTS, SCHEDULERS, SPACING_FLAGS, VARIANCES
from ldm.config.diffusion import BETA_KINDS, DiffusionConfig, ScheduleConfig
from ldm.config.section import parse
from ldm.errors import UserError
from ldm.storage.fields import (
    DIFFUSERS_VERSION,
    EXTRA,
    Fields,
    Fixed,
    expect_class,
    extra,
    key_of,
    known_fields,
)

BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction", "flow": "flow_prediction"}
FLOW = "FlowMatchEulerDiscreteScheduler"
FLOW_DEFAULTS: Fields = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "base_shift": 0.5,  # these five belong to use_dynamic_shifting
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "time_shift_type": "exponential",
}
FLOW_FIXED: Fixed = {
    "use_dynamic_shifting": (False,),
    "invert_sigmas": (False,),
    "shift_terminal": (None,),
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "stochastic_sampling": (False,),
}
BETWEEN_SPACINGS = ("fractional", *SPACING_FLAGS.values())
TIMES = {"training_times", "logit_mean", "logit_std"}  # of a flow, which diffusers does not ask
TRAINING = {"weighting", "offset_noise", "input_perturbation"}  # nor these, of any kind


def scheduler_class(config: DiffusionConfig) -> str:
    """The scheduler of diffusers that knows the schedule.

    Only DDPMScheduler has sigmoid and a learned variance, only EulerDiscreteScheduler levels between timesteps.
    """
    schedule = config.schedule
    if schedule.kind == "flow":
        return FLOW
    if schedule.kind == "sigmoid" or config.learned_variance:
        return "DDPMScheduler"
    return "EulerDiscreteScheduler" if schedule.spacing in BETWEEN_SPACINGS else "DDIMScheduler"


def scheduler_to_fields(config: DiffusionConfig) -> Fields:
    """`scheduler_config.json` of the scheduler of `scheduler_class`; UserError names an option that it cannot express.

    All but the scheduler of flows refuse to sample with prediction `flow` themselves, and StableDiffusionPipeline
    refuses that one: such parts load there singly.
    """
    name = scheduler_class(config)
    return {
        "_class_name": name,
        "_diffusers_version": DIFFUSERS_VERSION,
        **(_flow_to_fields(config) if name == FLOW else _table_to_fields(config, name)),
    }


def _flow_to_fields(config: DiffusionConfig) -> Fields:
    schedule = config.schedule
    if config.prediction != "flow":
        raise _inexpressible("prediction", config.prediction, "flow", FLOW)
    return {
        "num_train_timesteps": schedule.num_train_timesteps,
        "shift": schedule.shift,
        EXTRA: config.model_dump(mode="json", include=TRAINING) | schedule.model_dump(mode="json", include=TIMES),
    }


def _table_to_fields(config: DiffusionConfig, name: str) -> Fields:
    schedule = config.schedule
    return {
        "num_train_timesteps": schedule.num_train_timesteps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": _beta_schedules(name)[schedule.kind],
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        "steps_offset": schedule.steps_offset,
        "prediction_type": PREDICTIONS[config.prediction],
        "trained_betas": None,
        **_own_fields[name](config),
        EXTRA: config.model_dump(mode="json", include=TRAINING),
    }


def _ddim_fields(config: DiffusionConfig) -> Fields:
    return {
        "timestep_spacing": config.schedule.spacing,
        "set_alpha_to_one": config.schedule.set_alpha_to_one,
        "clip_sample": False,
        "thresholding": False,
    }


def _ddpm_fields(config: DiffusionConfig) -> Fields:
    schedule = config.schedule
    if not schedule.set_alpha_to_one:
        raise _inexpressible("schedule.set_alpha_to_one", False, True, "DDPMScheduler")
    if config.prediction == "flow":
        raise _inexpressible("prediction", "flow", "eps, x0 or v", "DDPMScheduler")
    if schedule.spacing in BETWEEN_SPACINGS:
        raise _inexpressible("schedule.spacing", schedule.spacing, "leading, trailing or linspace", "DDPMScheduler")
    return {
        "timestep_spacing": schedule.spacing,
        "clip_sample": False,
        "thresholding": False,
        "variance_type": VARIANCES[config.learned_variance],
    }


def _euler_fields(config: DiffusionConfig) -> Fields:
    schedule = config.schedule
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


def scheduler_from_fields(fields: Fields, where: Path) -> DiffusionConfig:
    """Schedule and prediction of a scheduler; UserError names a field that cannot be had."""
    expect_class(fields, (*SCHEDULERS, FLOW), where)
    name = fields["_class_name"]
    ours = _flow_from_fields(fields, where) if name == FLOW else _table_from_fields(fields, name, where)
    known = {key: value for key, value in extra(fields).items() if key in TRAINING}
    return parse(ours | known, DiffusionConfig, str(where))


def _flow_from_fields(fields: Fields, where: Path) -> Fields:
    theirs = known_fields(fields, FLOW_DEFAULTS, FLOW_FIXED, where)
    times = {key: value for key, value in extra(fields).items() if key in TIMES}
    schedule = {"kind": "flow", "num_train_timesteps": theirs["num_train_timesteps"], "shift": theirs["shift"], **times}
    return {"schedule": schedule, "prediction": "flow"}


def _table_from_fields(fields: Fields, name: str, where: Path) -> Fields:
    scheduler = SCHEDULERS[name]
    theirs = known_fields(scheduler.defaults | fields, DEFAULTS, scheduler.fixed, where)
    schedule = {key: theirs[key] for key in theirs.keys() & ScheduleConfig.model_fields.keys()} | {
        "kind": key_of(_beta_schedules(name), "beta_schedule", theirs, where),
        "zero_terminal_snr": theirs["rescale_betas_zero_snr"],
        "spacing": scheduler.spacing(theirs, where),
        "set_alpha_to_one": scheduler.ends_at_image(theirs, where),
    }
    if schedule["kind"] not in BETA_KINDS:  # theirs are there all the same
        del schedule["beta_start"], schedule["beta_end"]
    return {
        "schedule": schedule,
        "prediction": key_of(PREDICTIONS, "prediction_type", theirs, where),
        "learned_variance": theirs["variance_type"] == VARIANCES[True],
    }


def _beta_schedules(name: str) -> dict[str, str]:
    return BETA_SCHEDULES | {"sigmoid": "sigmoid"} if name == "DDPMScheduler" else BETA_SCHEDULES


def _inexpressible(option: str, value: object, needed: object, name: str) -> UserError:
    return UserError(f"diffusion.{option} is {value}, which {name} of diffusers cannot express: set it to {needed}")
