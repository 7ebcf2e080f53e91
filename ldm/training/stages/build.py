"""The conditions that train-unet supports."""

from __future__ import annotations

from ldm.config.root import Config
from ldm.errors import UserError
from ldm.training.classes import TableCondition, TokenCondition
from ldm.training.conditions import Condition, Nothing
from ldm.training.image_embedding import ImageCondition
from ldm.training.spatial import InpaintingCondition, LowResolutionCondition, MapCondition
from ldm.training.texts import TextCondition

CONDITIONS: dict[str, type[Condition]] = {
    "text": TextCondition,
    "classes": TokenCondition,
    "class_table": TableCondition,
    "image": ImageCondition,
    "segmentation_map": MapCondition,
    "inpainting": InpaintingCondition,
    "low_resolution": LowResolutionCondition,
    "nothing": Nothing,
}


def condition_kinds(config: Config) -> list[type[Condition]]:
    """Return the conditions of a configuration.

    Raises:
        UserError: if one of them is not supported in training.
    """
    unet = config.need_unet()
    for name in config.told:
        if name not in CONDITIONS:
            raise UserError(f"train-unet does not support {name}: it supports {', '.join(CONDITIONS)}")
    for name in ("class_embed_type", "addition_embed_type"):
        if getattr(unet, name) is not None:
            raise UserError(f"train-unet does not support unet.{name}: set it to null")
    return [CONDITIONS[name] for name in config.told]
