"""The discrete schedulers of diffusers: the fields of each, and the levels that it visits in our names."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ldm.errors import UserError
from ldm.storage.fields import Fields, Fixed, refused

LEARNED = "learned_range"
VARIANCES = {"small": "fixed_small", "large": "fixed_large"}  # our names -> diffusers', which has two for small
SMALL = (None, VARIANCES["small"], "fixed_small_log")
SPACING_FLAGS = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta"}
LU = "use_lu_lambdas"  # the same levels as use_exponential_sigmas

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
        "noise_sampler_seed",
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
    "use_beta_sigmas": False,
    LU: False,
    "clip_sample": False,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "clip_sample_range": 1.0,
    "sample_max_value": 1.0,
    "flow_shift": 1.0,  # these two: with use_flow_sigmas and use_dynamic_shifting only
    "time_shift_type": "exponential",
}
FIXED: Fixed = {
    "trained_betas": (None,),
    "skip_prk_steps": (True,),
    "variance_type": SMALL,
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
    variances: tuple[str | None, ...] = SMALL
    clips: tuple[str, ...] = ()  # of the fields clip_sample and thresholding those that the class has

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
    flags = SPACING_FLAGS | {LU: "exponential"}
    return next((spaced for flag, spaced in flags.items() if theirs[flag]), str(theirs["timestep_spacing"]))


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
_LEARNED = (*SMALL, LEARNED)
CLIPS = ("clip_sample", "thresholding")

SCHEDULERS: dict[str, Scheduler] = {
    "DDIMScheduler": Scheduler(_at_timesteps, _by_flag, {"clip_sample": True}, clips=CLIPS),
    "DDPMScheduler": Scheduler(_at_timesteps, _always, {"clip_sample": True}, (*_LEARNED, VARIANCES["large"]), CLIPS),
    "PNDMScheduler": Scheduler(_at_timesteps, _by_flag, {"set_alpha_to_one": False, "skip_prk_steps": False}),
    "LCMScheduler": Scheduler(_distilled, _by_flag, _SMALL_BETAS | {"beta_schedule": "scaled_linear"}, clips=CLIPS),
    "TCDScheduler": Scheduler(_distilled, _never, _SMALL_BETAS | {"beta_schedule": "scaled_linear"}),
    "EulerDiscreteScheduler": Scheduler(_between_timesteps, _by_type, _LINSPACE),
    "EulerAncestralDiscreteScheduler": Scheduler(_between_without_flags, _always, _LINSPACE),
    "HeunDiscreteScheduler": Scheduler(_between_timesteps, _always, _LINSPACE | _SMALL_BETAS),
    "LMSDiscreteScheduler": Scheduler(_between_timesteps, _always, _LINSPACE),
    "DPMSolverSDEScheduler": Scheduler(_between_timesteps, _always, _LINSPACE | _SMALL_BETAS),
    "KDPM2DiscreteScheduler": Scheduler(_between_timesteps, _always, _LINSPACE | _SMALL_BETAS),
    "KDPM2AncestralDiscreteScheduler": Scheduler(_between_timesteps, _always, _LINSPACE | _SMALL_BETAS),
    "DPMSolverMultistepScheduler": Scheduler(_multistep, _by_type, _LINSPACE, _LEARNED, CLIPS[1:]),
    "DPMSolverSinglestepScheduler": Scheduler(_singlestep, _by_type, _LINSPACE, _LEARNED, CLIPS[1:]),
    "UniPCMultistepScheduler": Scheduler(_multistep, _by_type, _LINSPACE, clips=CLIPS[1:]),
    "DEISMultistepScheduler": Scheduler(_multistep, _never, _LINSPACE, clips=CLIPS[1:]),
}
