"""The data set that `--data scenes` names: rendered once on all cores, then read from a cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np

from ldm.config.data import ScenesConfig, Size
from ldm.data.cache import default_cache
from ldm.data.progress import track
from ldm.data.scenes.artwork import package_version
from ldm.data.scenes.compose import Split
from ldm.data.scenes.drawing import render
from ldm.data.scenes.making import Order, make_all
from ldm.data.scenes.maps import kind_names, maps_digest, render_map
from ldm.data.scenes.scene import Scene
from ldm.data.scenes.vocabulary import first, tables_digest
from ldm.errors import UserError

# Of what the code makes of the same arguments and tables; raise it with every change of images or captions.
VERSION = 1
LABELS = "labels.npy"


class ScenesDataset:
    """`config.num` scenes of `size` pixels; images and captions by index."""

    def __init__(
        self,
        config: ScenesConfig,
        size: int,
        split: Split = "train",
        processes: int | None = None,
        cache: Path | None = None,
        map_classes: int | None = None,
    ) -> None:
        """Find them in the cache, or make them; UserError where maps of other classes are asked for."""
        names = kind_names()
        if map_classes not in (None, len(names)):
            raise UserError(f"data.map_classes is {map_classes}; scenes' maps have {len(names)}: {', '.join(names)}")
        order = Order(config.num, size, config.seed, split, config.concepts, config.mix)
        order.check()
        self.folder = (cache or default_cache()) / "scenes" / _fingerprint(order)
        if not self.folder.is_dir():
            _fill(self.folder, order, processes)
        self._order, self._processes = order, processes
        self.concepts = order.concepts  # only the first so many of the list; None: all
        maps = self.folder / f"maps-{maps_digest()}.npy"
        if map_classes is not None and not maps.is_file():
            _fill_maps(maps, order, processes)
        self._maps = None if map_classes is None else np.load(maps, mmap_mode="r")
        self._images = np.load(self.folder / "pictures.npy", mmap_mode="r")
        with (self.folder / "captions.jsonl").open(encoding="utf-8") as lines:
            self._captions: list[list[str]] = [json.loads(line) for line in lines]

    def __len__(self) -> int:
        return len(self._captions)

    def image(self, index: int) -> np.ndarray:
        """Image number `index`, uint8 (size, size, 3)."""
        return np.array(self._images[index])

    def map(self, index: int) -> np.ndarray:
        """Kinds of what is seen in image number `index`, uint8 (size, size); UserError where they were not made."""
        if self._maps is None:
            raise UserError("the maps of scenes are made where data.map_classes says so")
        return np.array(self._maps[index])

    def scene(self, index: int) -> Scene:
        """The record that image number `index` was drawn from."""
        return self._order.scene(index)

    def shape(self, index: int) -> Size:
        """Height and width of image number `index`."""
        height, width, _ = self._images.shape[1:]
        return height, width

    def captions(self, index: int) -> list[str]:
        """All captions of image number `index`, the plainest full one first."""
        return self._captions[index]

    def label(self, index: int) -> int:
        """What the first thing in image number `index` is: a place in `class_names`."""
        return int(self._labels[index])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the concepts that can stand in the scenes, the most recognisable first."""
        assert len(self._labels)  # made here, before any process that loads images is started
        return _names(self._order)

    @cached_property
    def _labels(self) -> np.ndarray:
        """Classes (N,) of all images; caches of older versions have none yet."""
        path = self.folder / LABELS
        if not path.is_file():
            made = track(
                make_all(self._order, self._processes, render), "looking up the classes of scenes, once", len(self)
            )
            work = path.with_name(f".{LABELS}.{os.getpid()}.tmp.npy")
            np.save(work, np.array([_number(scene, self._order) for scene, _ in made]))
            work.replace(path)
        return np.load(path)

    def stamp(self, index: int) -> str:
        """Of the data set, and the number."""
        return f"{self.folder.name} {index}"


def _names(order: Order) -> tuple[str, ...]:
    return tuple(concept.name for concept in first(order.concepts))


def _number(scene: Scene, order: Order) -> int:
    """What the first thing in a scene is."""
    return _names(order).index(scene.labels()[0])


def _fingerprint(order: Order) -> str:
    asked = asdict(order)
    if order.mix == "objects":  # as before there were others
        del asked["mix"]
    facts = asked | {"version": VERSION, "artwork": package_version(), "tables": tables_digest()}
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=12).hexdigest()


def _fill(folder: Path, order: Order, processes: int | None) -> None:
    """Make all scenes beside `folder` and move them there at once, so that nobody sees half of them."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UserError(f"scenes cannot be cached in {folder.parent}: {error.strerror}; set LDM_CACHE") from error
    try:
        _write(temporary, order, processes)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster, with the same bytes
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fill_maps(path: Path, order: Order, processes: int | None) -> None:
    """Make the maps of all scenes in a file that is whole or not there."""
    maps = np.empty((order.num, order.size, order.size), dtype=np.uint8)
    made = track(make_all(order, processes, render_map), "rendering maps of scenes, once", order.num)
    for index, (_, kinds) in enumerate(made):
        maps[index] = kinds
    work = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npy")
    np.save(work, maps)
    work.replace(path)


def _write(folder: Path, order: Order, processes: int | None) -> None:
    shape = (order.num, order.size, order.size, 3)
    images = np.lib.format.open_memmap(folder / "pictures.npy", mode="w+", dtype=np.uint8, shape=shape)
    labels = []
    with (folder / "captions.jsonl").open("w", encoding="utf-8") as captions:
        made = track(make_all(order, processes, render), "rendering scenes, once", order.num)
        for index, (scene, image) in enumerate(made):
            images[index] = image
            labels.append(_number(scene, order))
            captions.write(json.dumps(scene.captions(exact=order.mix == "relations")) + "\n")
    images.flush()
    np.save(folder / LABELS, np.array(labels))
