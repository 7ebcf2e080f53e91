"""Convert between `config.json` of diffusers' UNet2DConditionModel or UNet2DModel and the section `unet`."""

from __future__ import annotations

from pathlib import Path

from ldm.config.section import parse
from ldm.models.unet import condition_fields, plain_fields
from ldm.models.unet.config import UNetConfig
from ldm.storage.fields import EXTRA, Fields, expect_class, extra

KINDS = {"transformer": condition_fields, "plain": plain_fields}
CLASSES = {module.NAME: module for module in KINDS.values()}

# Options with several spellings of the same value: ours is saved too where the fields lead to another one.
SPELLINGS = ("num_attention_heads", "resnet_resampling", "mid_attention_layers", "use_linear_projection")


def unet_to_fields(config: UNetConfig) -> Fields:
    """Convert the section to the fields of diffusers' class.

    Raises:
        UserError: for an option that the class does not have.
    """
    fields = KINDS[config.attention].to_fields(config)
    ours, read = config.model_dump(mode="json"), _read(fields, Path("config.json")).model_dump(mode="json")
    spelled = {name: ours[name] for name in SPELLINGS if ours[name] != read[name]}
    return fields | ({EXTRA: spelled} if spelled else {})


def unet_from_fields(fields: Fields, where: Path) -> UNetConfig:
    """Convert the fields of a UNet2DConditionModel or UNet2DModel to the section.

    Raises:
        UserError: for a field that is unknown or unsupported.
    """
    expect_class(fields, tuple(CLASSES), where)
    config = _read(fields, where)
    spelled = {name: value for name, value in extra(fields).items() if name in SPELLINGS}
    if not spelled:
        return config
    ours = parse(config.model_dump() | spelled, UNetConfig, str(where))
    same = _read(KINDS[config.attention].to_fields(ours), where) == config
    return ours if same else config  # the fields have been edited since: they decide


def _read(fields: Fields, where: Path) -> UNetConfig:
    return parse(CLASSES[fields["_class_name"]].from_fields(fields, where), UNetConfig, str(where))
