"""Segmentation maps of scenes: the kind of thing at each pixel."""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import yaml

from ldm.data.scenes.drawing import render, render_mask
from ldm.data.scenes.scene import Scene
from ldm.data.scenes.vocabulary import table_text

BEHIND = ("background", "ground")  # behind the things: a flat colour or sky, and below it the ground
OTHER = "thing"  # the kind of concepts in no list


@cache
def kind_names() -> tuple[str, ...]:
    """Return names of the kinds by their numbers in a map."""
    return (*BEHIND, *_table(), OTHER)


@cache
def kind_of(name: str) -> int:
    """Return the class number, in segmentation maps, of a concept's kind."""
    found = next((kind for kind, names in _table().items() if name in names), OTHER)
    return kind_names().index(found)


def render_map(scene: Scene, size: int) -> np.ndarray:
    """Render the visible kind of each pixel, uint8 (size, size)."""
    rows = (np.arange(size) + 0.5) / size
    on_ground = (scene.background.kind == "landscape") & (rows >= scene.background.horizon)
    behind = np.repeat(on_ground[:, None], size, axis=1).astype(np.uint8)  # 0 or 1, the numbers of BEHIND
    instances = render_mask(scene, size)
    kinds = np.array([0, *(kind_of(thing.name) for thing in scene.things)], dtype=np.uint8)
    return np.where(instances, kinds[instances], behind)


def render_with_map(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Render image and map."""
    return render(scene, size), render_map(scene, size)


def maps_digest() -> str:
    """Digest of the table of kinds."""
    return hashlib.blake2b(table_text("kinds.yaml").encode(), digest_size=8).hexdigest()


@cache
def _table() -> dict[str, frozenset[str]]:
    table: dict[str, list[str]] = yaml.safe_load(table_text("kinds.yaml"))
    return {kind: frozenset(names) for kind, names in table.items()}
