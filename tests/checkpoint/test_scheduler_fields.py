"""Scheduler fields that diffusers cannot express, or that ldm does not support, raise an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.checkpoint.diffusers.scheduler_fields import scheduler_class, scheduler_from_fields, scheduler_to_fields
from ldm.config.diffusion import DiffusionConfig, schedule_config
from ldm.errors import UserError

WHERE = Path("scheduler_config.json")
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
DDPM = {"_class_name": "DDPMScheduler", "clip_sample": False}


@pytest.mark.parametrize(
    ("config", "option"),
    [
        (DiffusionConfig(schedule=schedule_config(kind="sigmoid")), "diffusion.schedule.set_alpha_to_one is False"),
        (DiffusionConfig(learned_variance=True), "diffusion.schedule.set_alpha_to_one is False"),
        (DiffusionConfig(prediction="v", schedule=schedule_config(kind="flow")), "diffusion.prediction is v"),
        (
            DiffusionConfig(prediction="flow", learned_variance=True, schedule=schedule_config(set_alpha_to_one=True)),
            "diffusion.prediction is flow",
        ),
    ],
)
def test_an_option_that_diffusers_does_not_have_raises_an_error_that_names_it(
    config: DiffusionConfig, option: str
) -> None:
    with pytest.raises(UserError, match=f"{option}, which {scheduler_class(config)} of diffusers does not support"):
        scheduler_to_fields(config)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": "maybe"}, "set_alpha_to_one"),
        (FLOW | {"use_dynamic_shifting": True}, "use_dynamic_shifting"),
        (FLOW | {"shift_terminal": 0.1}, "shift_terminal"),
        (FLOW | {"use_karras_sigmas": True}, "use_karras_sigmas"),
        (FLOW | {"invert_sigmas": True}, "invert_sigmas"),
        (FLOW | {"stochastic_sampling": True}, "stochastic_sampling"),
        (FLOW | {"beta_start": 0.1}, "beta_start of FlowMatchEulerDiscreteScheduler"),
        (FLOW | {"shift": -1.0}, "schedule.shift"),
        (DDPM | {"beta_start": -0.1}, "schedule.beta_start"),
        (DDPM | {"beta_end": 2.0}, "schedule.beta_end"),
        (DDPM | {"steps_offset": -5}, "schedule.steps_offset"),
        (DDPM | {"variance_type": "learned"}, "variance_type"),
        (DDPM | {"variance_type": "fixed_large_log"}, "variance_type"),
        (DDPM | {"_class_name": "DDIMScheduler", "variance_type": "fixed_large"}, "variance_type"),
        (DDPM | {"clip_sample": True, "clip_sample_range": 0.0}, "clipping.limit"),
        (DDPM | {"thresholding": True, "dynamic_thresholding_ratio": 1.5}, "clipping.quantile"),
        (DDPM | {"_class_name": "DDIMScheduler", "variance_type": "learned_range"}, "variance_type"),
        (DDPM | {"_class_name": "DDIMScheduler", "beta_schedule": "sigmoid"}, "beta_schedule"),
    ],
)
def test_what_we_do_not_have_raises_an_error_that_names_it(fields: dict[str, object], name: str) -> None:
    with pytest.raises(UserError, match=name):
        scheduler_from_fields(fields, WHERE)


def test_a_beta_that_a_cosine_schedule_never_looks_at_is_no_obstacle() -> None:
    fields = DDPM | {"beta_schedule": "squaredcos_cap_v2", "beta_start": 0.5}
    assert scheduler_from_fields(fields, WHERE).schedule.kind == "cosine"
