"""`scheduler_config.json` of diffusers <-> the section `diffusion`; each schedule maps its own options."""

from __future__ import annotations

from pathlib import Path

from ldm.config.diffusion import DiffusionConfig
from ldm.config.section import parse
from ldm.registry import SCHEDULES
from ldm.storage.fields import DIFFUSERS_VERSION, EXTRA, Fields, expect_class, extra, refused

TRAINING = {"weighting", "offset_noise", "input_perturbation"}  # options that diffusers does not have


def scheduler_classes() -> tuple[str, ...]:
    """Return names of all of diffusers' scheduler classes whose folders can be read."""
    return tuple(dict.fromkeys(name for schedule in SCHEDULES.values() for name in schedule.scheduler_classes()))


def scheduler_class(config: DiffusionConfig) -> str:
    """Name of diffusers' scheduler class that supports the schedule."""
    name: str = SCHEDULES[config.schedule.kind].scheduler_class(config)
    return name


def scheduler_to_fields(config: DiffusionConfig) -> Fields:
    """Convert the section to `scheduler_config.json` of the class `scheduler_class`.

    Raises:
        UserError: for an option that the class does not have.
    """
    fields = SCHEDULES[config.schedule.kind].to_fields(config)
    return {
        "_class_name": scheduler_class(config),
        "_diffusers_version": DIFFUSERS_VERSION,
        **fields,
        EXTRA: config.model_dump(mode="json", include=TRAINING) | extra(fields),
    }


def scheduler_from_fields(fields: Fields, where: Path) -> DiffusionConfig:
    """Convert `scheduler_config.json` to the section.

    Raises:
        UserError: for a class or a field that ldm does not support.
    """
    expect_class(fields, scheduler_classes(), where)
    schedule = next((each for each in SCHEDULES.values() if each.reads(fields)), None)
    if schedule is None:
        raise refused("beta_schedule", fields.get("beta_schedule"), where)
    training = {name: value for name, value in extra(fields).items() if name in TRAINING}
    return parse(schedule.from_fields(fields, where) | training, DiffusionConfig, str(where))
