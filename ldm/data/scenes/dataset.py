"""The data source `scenes`: rendered once on all cores, then read from a cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, PositiveInt

from ldm.config.section import Section
from ldm.data.cache import default_cache
from ldm.data.progress import track
from ldm.data.scenes.artwork import package_version
from ldm.data.scenes.compose import Split
from ldm.data.scenes.drawing import render
from ldm.data.scenes.making import ScenesSpec, make_all
from ldm.data.scenes.maps import kind_names, maps_digest, render_map
from ldm.data.scenes.scene import Scene
from ldm.data.scenes.vocabulary import first, tables_digest
from ldm.data.sources import IndexedSource
from ldm.data.validation import held_out_count
from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.config.data import DataConfig, Size

VERSION = 1  # raise it with every change of images or captions for the same arguments and tables
LABELS = "labels.npy"
VALIDATION_SEED = 1 << 62  # flipped in the seed of the scenes on which a training is validated


class ScenesConfig(Section):
    """The built-in data set, with `--data scenes`."""

    num: int = Field(20_000, ge=1)
    seed: int = Field(0, ge=0, lt=2**63)
    concepts: PositiveInt | None = None  # only the first, most recognisable concepts; None: all
    # How often each kind of scene occurs, and the captions: mostly single objects, or mostly relations between
    # objects, with captions that describe them exactly.
    mix: Literal["objects", "relations"] = "objects"


class ScenesDataset(IndexedSource):
    """`config.num` scenes of `size` pixels."""

    section = ScenesConfig
    accepts = "`scenes`"
    has_maps = True

    def __init__(
        self,
        config: ScenesConfig,
        size: int,
        split: Split = "train",
        processes: int | None = None,
        cache: Path | None = None,
        map_classes: int | None = None,
    ) -> None:
        """Find the scenes in the cache, or render them.

        Raises:
            UserError: if `map_classes` differs from the maps.
        """
        names = kind_names()
        if map_classes not in (None, len(names)):
            raise UserError(
                f"data.map_classes is {map_classes} but the maps of scenes have {len(names)} classes: set it to that. "
                f"They are: {', '.join(names)}"
            )
        spec = ScenesSpec(config.num, size, config.seed, split, config.concepts, config.mix)
        spec.check()
        self.folder = (cache or default_cache()) / "scenes" / _fingerprint(spec)
        if not self.folder.is_dir():
            _fill(self.folder, spec, processes)
        self._spec, self._processes, self._cache = spec, processes, cache
        self.concepts = spec.concepts  # only the first ones; None: all
        maps = self.folder / f"maps-{maps_digest()}.npy"
        if map_classes is not None and not maps.is_file():
            _fill_maps(maps, spec, processes)
        self._maps = None if map_classes is None else np.load(maps, mmap_mode="r")
        self._images = np.load(self.folder / "pictures.npy", mmap_mode="r")
        with (self.folder / "captions.jsonl").open(encoding="utf-8") as lines:
            self._captions: list[list[str]] = [json.loads(line) for line in lines]

    @classmethod
    def matches(cls, data: str) -> bool:
        """Return whether `data` is the word `scenes`."""
        return data == "scenes"

    @classmethod
    def open(cls, data: str, config: DataConfig, split: Split) -> ScenesDataset:
        """Open the data set of `data.scenes`.

        Raises:
            UserError: for options that do not apply to it.
        """
        for option in ("caption_fields", "class_field"):
            if getattr(config, option):
                raise UserError(f"data.{option} does not apply to scenes, which have built-in captions and classes")
        return cls(config.scenes, config.size, split, map_classes=config.map_classes)

    def other_scenes(self, config: DataConfig) -> ScenesDataset | None:
        """Return scenes of another seed, if there are at least 500; training keeps all its scenes."""
        count = held_out_count(len(self), config)
        if not count:
            return None
        other = config.scenes.model_copy(update={"num": count, "seed": config.scenes.seed ^ VALIDATION_SEED})
        return ScenesDataset(other, self._spec.size, "train", self._processes, self._cache, config.map_classes)

    def held_out(self, config: DataConfig) -> np.ndarray:
        """Return what `data.validation` holds out; by default nothing, see `other_scenes`."""
        return super().held_out(config) if config.validation is not None else np.zeros(0, dtype=int)

    def __len__(self) -> int:
        return len(self._captions)

    def image(self, index: int) -> np.ndarray:
        return np.array(self._images[index])

    def map(self, index: int) -> np.ndarray:
        """Read the kinds of the pixels, uint8 (size, size)."""
        if self._maps is None:
            raise UserError("the maps of scenes were not rendered: set data.map_classes")
        return np.array(self._maps[index])

    def scene(self, index: int) -> Scene:
        """Return the record that an image is rendered from."""
        return self._spec.scene(index)

    def shape(self, index: int) -> Size:
        height, width, _ = self._images.shape[1:]
        return height, width

    def captions(self, index: int) -> list[str]:
        return self._captions[index]

    def label(self, index: int) -> int:
        """Return the position of an image's first thing in `class_names`."""
        return int(self._label_array[index])

    @property
    def class_names(self) -> tuple[str, ...]:
        assert len(self._label_array)  # read here, before loader processes are started
        return _names(self._spec)

    @cached_property
    def _label_array(self) -> np.ndarray:
        """Classes (N,) of all images; caches of older versions have none yet."""
        path = self.folder / LABELS
        if not path.is_file():
            scenes = _tracked("looking up the classes of scenes, once", self._spec, self._processes, render)
            _save(path, np.array([_number(scene, self._spec) for scene, _ in scenes]))
        return np.load(path)

    def stamp(self, index: int) -> str:
        """Return the data set and the index."""
        return f"{self.folder.name} {index}"


def _names(spec: ScenesSpec) -> tuple[str, ...]:
    return tuple(concept.name for concept in first(spec.concepts))


def _number(scene: Scene, spec: ScenesSpec) -> int:
    """Return number of the concept of a scene's first thing."""
    return _names(spec).index(scene.labels()[0])


def _fingerprint(spec: ScenesSpec) -> str:
    asked = asdict(spec)
    if spec.mix == "objects":  # as before there were other mixes
        del asked["mix"]
    facts = asked | {"version": VERSION, "artwork": package_version(), "tables": tables_digest()}
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=12).hexdigest()


def _tracked(description: str, spec: ScenesSpec, processes: int | None, draw: Any) -> Iterator[tuple[Scene, Any]]:
    return track(make_all(spec, processes, draw), description, spec.num)


def _fill(folder: Path, spec: ScenesSpec, processes: int | None) -> None:
    """Render all scenes to a temporary folder and rename it, so that `folder` is never incomplete."""
    try:
        temporary = folder.with_name(f"{folder.name}-{uuid.uuid4().hex[:8]}")  # mkdtemp's would be the owner's alone
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"scenes cannot be cached in {folder.parent}: {error.strerror}; set LDM_CACHE") from error
    try:
        _write(temporary, spec, processes)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster, with the same bytes
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fill_maps(path: Path, spec: ScenesSpec, processes: int | None) -> None:
    maps = np.empty((spec.num, spec.size, spec.size), dtype=np.uint8)
    for index, (_, kinds) in enumerate(_tracked("rendering maps of scenes, once", spec, processes, render_map)):
        maps[index] = kinds
    _save(path, maps)


def _save(path: Path, values: np.ndarray) -> None:
    """Save an array under a temporary name and rename it."""
    work = path.with_name(f".{path.name}.{os.getpid()}.tmp.npy")
    np.save(work, values)
    work.replace(path)


def _write(folder: Path, spec: ScenesSpec, processes: int | None) -> None:
    shape = (spec.num, spec.size, spec.size, 3)
    images = np.lib.format.open_memmap(folder / "pictures.npy", mode="w+", dtype=np.uint8, shape=shape)
    labels = []
    with (folder / "captions.jsonl").open("w", encoding="utf-8") as captions:
        for index, (scene, image) in enumerate(_tracked("rendering scenes, once", spec, processes, render)):
            images[index] = image
            labels.append(_number(scene, spec))
            captions.write(json.dumps(scene.captions(exact=spec.mix == "relations")) + "\n")
    images.flush()
    np.save(folder / LABELS, np.array(labels))
