"""Tables of classes <-> their folders, in a layout of our own."""

from __future__ import annotations

from pathlib import Path

import torch

from ldm.checkpoint.fields import DIFFUSERS_VERSION, Fields, expect_class, known_fields, load_fields
from ldm.checkpoint.store import save_json
from ldm.checkpoint.weights import build, load_weights, save_weights
from ldm.config import ClassesConfig, parse
from ldm.models.conditions import ClassEmbedder

STEM = "diffusion_pytorch_model"


def load_class_embedder(folder: Path, dtype: torch.dtype = torch.float32) -> ClassEmbedder:
    """The table in a folder; UserError if it is not whole."""
    config = classes_from_fields(load_fields(folder / "config.json"), folder / "config.json")
    return build(lambda: ClassEmbedder(config), load_weights(folder, STEM), dtype, folder)


def classes_from_fields(fields: Fields, where: Path) -> ClassesConfig:
    """The configuration of a table; UserError names a field that cannot be had."""
    expect_class(fields, ("ClassEmbedder",), where)
    known = known_fields(fields, dict.fromkeys(ClassesConfig.model_fields), {}, where)
    return parse(known, ClassesConfig, str(where))


def save_class_embedder(classes: ClassEmbedder, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a table, its weights as `dtype` if given."""
    save_weights(folder, STEM, classes.state_dict(), dtype)
    names = {"_class_name": "ClassEmbedder", "_diffusers_version": DIFFUSERS_VERSION}
    save_json(folder / "config.json", names | classes.config.model_dump())
