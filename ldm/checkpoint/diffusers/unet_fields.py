"""`config.json` of diffusers' U-Nets <-> ours: their oddities are translated here and in the two modules used."""

from __future__ import annotations

from pathlib import Path

from ldm.checkpoint.diffusers import unet_condition_fields, unet_plain_fields
from ldm.config.section import parse
from ldm.models.unet.config import UNetConfig
from ldm.storage.fields import EXTRA, Fields, expect_class, extra

KINDS = {"transformer": unet_condition_fields, "plain": unet_plain_fields}
CLASSES = {module.NAME: module for module in KINDS.values()}

# Options that say the same in several ways: ours is kept beside the fields where it is not the one they lead to.
SPELLINGS = ("num_attention_heads", "resnet_resampling", "mid_attention_layers", "use_linear_projection")


def unet_to_fields(config: UNetConfig) -> Fields:
    """`config.json` of the class of diffusers that has this attention; UserError for what it cannot express."""
    fields = KINDS[config.attention].to_fields(config)
    ours, read = config.model_dump(mode="json"), _read(fields, Path("config.json")).model_dump(mode="json")
    spelled = {name: ours[name] for name in SPELLINGS if ours[name] != read[name]}
    return fields | ({EXTRA: spelled} if spelled else {})


def unet_from_fields(fields: Fields, where: Path) -> UNetConfig:
    """The configuration of a UNet2DConditionModel or UNet2DModel; UserError names a field that cannot be had."""
    expect_class(fields, tuple(CLASSES), where)
    config = _read(fields, where)
    spelled = {name: value for name, value in extra(fields).items() if name in SPELLINGS}
    if not spelled:
        return config
    ours = parse(config.model_dump() | spelled, UNetConfig, str(where))
    same = _read(KINDS[config.attention].to_fields(ours), where) == config
    return ours if same else config  # the fields were changed since: they decide


def _read(fields: Fields, where: Path) -> UNetConfig:
    return parse(CLASSES[fields["_class_name"]].from_fields(fields, where), UNetConfig, str(where))
