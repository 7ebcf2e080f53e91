"""Tables of classes <-> their folders, in a layout of our own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ldm.conditioning.classes import ClassEmbedder, ClassesConfig
from ldm.config.section import parse
from ldm.errors import UserError
from ldm.storage.fields import DIFFUSERS_VERSION, Fields, expect_class, known_fields, load_fields
from ldm.storage.store import save_json
from ldm.storage.weights import build, load_weights, save_weights

STEM = "diffusion_pytorch_model"
NAMES, EMPTY = "id2label", "empty_class"  # in model_index.json; the first is diffusers' name, of its DiTPipeline


def class_facts(names: Sequence[str], empty: int | None) -> Fields:
    """What `model_index.json` says of classes: their names by number, and the number that stands for none."""
    labels = {str(number): name for number, name in enumerate(names)}
    return ({NAMES: labels} if names else {}) | ({} if empty is None else {EMPTY: empty})


def read_class_facts(index: Fields, where: Path) -> tuple[tuple[str, ...], int | None]:
    """Names of classes, () where there are none, and the empty class; UserError for what is neither."""
    labels, empty = index.get(NAMES, {}), index.get(EMPTY)
    whole = isinstance(labels, dict) and list(labels) == [str(number) for number in range(len(labels))]
    if not whole or not all(isinstance(name, str) for name in labels.values()):
        raise UserError(f"{where}: {NAMES} does not map 0, 1, ... to names")
    if empty is not None and (type(empty) is not int or empty < 0):
        raise UserError(f"{where}: {EMPTY} is {empty!r}, not a class")
    return tuple(labels.values()), empty


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
