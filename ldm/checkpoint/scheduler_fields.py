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
from ldm.config import DiffusionConfig, ScheduleConfig, parse
from ldm.config.diffusion import BETA_KINDS
from ldm.errors import UserError

BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction", "flow": "flow_prediction"}
VARIANCES = {False: "fixed_small", True: "learned_range"}  # by learned_variance
FLOW = "FlowMatchEulerDiscreteScheduler"

# The schedulers that Stable Diffusion's checkpoints come with, and their defaults where they differ.
SCHEDULERS: dict[str, Fields] = {
    "DDIMScheduler": {"clip_sample": True},
    "DDPMScheduler": {"clip_sample": True},
    "PNDMScheduler": {"set_alpha_to_one": False, "skip_prk_steps": False},
    FLOW: {},
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
    "variance_type": "fixed_small",
    "dynamic_thresholding_ratio": 0.995,  # these three belong to clip_sample and thresholding
    "clip_sample_range": 1.0,
    "sample_max_value": 1.0,
}
FIXED: Fixed = {
    "clip_sample": (False,),
    "thresholding": (False,),
    "trained_betas": (None,),
    "skip_prk_steps": (True,),
    "variance_type": (VARIANCES[False],),
}
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
TIMES = {"training_times", "logit_mean", "logit_std"}  # of a flow, which diffusers does not ask
TRAINING = {"weighting", "offset_noise", "input_perturbation"}  # nor these, of any kind


def scheduler_class(config: DiffusionConfig) -> str:
    """The scheduler of diffusers that knows the schedule; only DDPMScheduler has sigmoid and a learned variance."""
    if config.schedule.kind == "flow":
        return FLOW
    return "DDPMScheduler" if config.schedule.kind == "sigmoid" or config.learned_variance else "DDIMScheduler"


def scheduler_to_fields(config: DiffusionConfig) -> Fields:
    """`scheduler_config.json` of the scheduler of `scheduler_class`; UserError names an option that it cannot express.

    DDIMScheduler itself refuses to sample with prediction `flow`, and StableDiffusionPipeline with the scheduler of
    flows: those parts load there singly.
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
    fields = {
        "num_train_timesteps": schedule.num_train_timesteps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": _beta_schedules(name)[schedule.kind],
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        "timestep_spacing": schedule.spacing,
        "steps_offset": schedule.steps_offset,
        "prediction_type": PREDICTIONS[config.prediction],
        "clip_sample": False,
        "thresholding": False,
        "trained_betas": None,
        EXTRA: config.model_dump(mode="json", include=TRAINING),
    }
    if name == "DDIMScheduler":
        return fields | {"set_alpha_to_one": schedule.set_alpha_to_one}
    if not schedule.set_alpha_to_one:
        raise _inexpressible("schedule.set_alpha_to_one", False, True, name)
    if config.prediction == "flow":
        raise _inexpressible("prediction", "flow", "eps, x0 or v", name)
    return fields | {"variance_type": VARIANCES[config.learned_variance]}


def scheduler_from_fields(fields: Fields, where: Path) -> DiffusionConfig:
    """Schedule and prediction of a scheduler; UserError names a field that cannot be had."""
    expect_class(fields, tuple(SCHEDULERS), where)
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
    fixed = FIXED | {"variance_type": tuple(VARIANCES.values())} if name == "DDPMScheduler" else FIXED
    theirs = known_fields(SCHEDULERS[name] | fields, DEFAULTS, fixed, where)
    schedule = {key: theirs[key] for key in theirs.keys() & ScheduleConfig.model_fields.keys()} | {
        "kind": key_of(_beta_schedules(name), "beta_schedule", theirs, where),
        "zero_terminal_snr": theirs["rescale_betas_zero_snr"],
        "spacing": theirs["timestep_spacing"],
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
