"""Write scenes to files: an image folder for Hugging Face `datasets`, or WebDataset's tar shards."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.data.images import paint
from ldm.data.scenes.compose import Split
from ldm.data.scenes.drawing import render
from ldm.data.scenes.making import ScenesSpec, make_all
from ldm.data.scenes.maps import render_with_map
from ldm.data.scenes.scene import Scene
from ldm.data.selection import MAP_SUFFIX
from ldm.data.shard_index import write_index
from ldm.data.shards import MAP
from ldm.errors import UserError

SHARD = 1000  # scenes in a tar file


def write_folder(
    out: str | Path,
    num: int,
    size: int = 64,
    seed: int = 0,
    split: Split = "train",
    processes: int | None = None,
    concepts: int | None = None,
    maps: bool = False,
) -> None:
    """Write scenes as PNG files and a `metadata.jsonl` with text, captions and the scene's record.

    Args:
        maps: also write an `image.map.png` beside each, whose palette indices are the kinds of things.

    Raises:
        UserError: if the folder contains files or cannot be written.
    """
    spec = ScenesSpec(num, size, seed, split, concepts)
    folder = _empty_folder(out, spec)
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        for index, (scene, image, kinds) in enumerate(_rendered(spec, processes, maps)):
            name = f"{index:06d}.png"
            (folder / name).write_bytes(_png(Image.fromarray(image)))
            captions = scene.captions()
            # The record is one string: its optional fields would give the table's columns varying types.
            row = {"file_name": name, "text": captions[0], "captions": captions, "record": _json(scene.to_record())}
            if kinds is not None:
                row["map_file_name"] = map_name = f"{index:06d}{MAP_SUFFIX}"
                (folder / map_name).write_bytes(_png(paint(kinds)))
            metadata.write(_json(row) + "\n")


def write_webdataset(
    out: str | Path,
    num: int,
    size: int = 64,
    seed: int = 0,
    split: Split = "train",
    processes: int | None = None,
    concepts: int | None = None,
    maps: bool = False,
) -> None:
    """Write scenes as tar shards of .png, .txt (the first caption) and .json (captions, record), with an index.

    Args:
        maps: also write a .map.png of each, whose palette indices are the kinds of things.

    Raises:
        UserError: if the folder contains files or cannot be written.
    """
    spec = ScenesSpec(num, size, seed, split, concepts)
    folder = _empty_folder(out, spec)
    scenes = enumerate(_rendered(spec, processes, maps))
    counts = {f"{first // SHARD:06d}.tar": min(SHARD, num - first) for first in range(0, num, SHARD)}
    for name, count in counts.items():
        with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as archive:
            for _ in range(count):
                index, (scene, image, kinds) = next(scenes)
                for suffix, content in _members(scene, image, kinds).items():
                    _add(archive, f"{index:06d}.{suffix}", content)
    write_index(folder, counts)


def _rendered(
    spec: ScenesSpec, processes: int | None, maps: bool
) -> Iterator[tuple[Scene, np.ndarray, np.ndarray | None]]:
    """Return scenes, images and, if asked for, maps."""
    if maps:
        yield from ((scene, *both) for scene, both in make_all(spec, processes, render_with_map))
    else:
        yield from ((scene, image, None) for scene, image in make_all(spec, processes, render))


def _empty_folder(out: str | Path, spec: ScenesSpec) -> Path:
    spec.check()
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        full = any(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be used as a folder: {error.strerror}; name another one") from error
    if full:
        raise UserError(f"{folder} contains files already: empty it or name another folder")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} is not writable: change its permissions or name another folder")
    return folder


def _members(scene: Scene, image: np.ndarray, kinds: np.ndarray | None) -> dict[str, bytes]:
    captions = scene.captions()
    record = {"captions": captions, "record": scene.to_record()}
    members = {"png": _png(Image.fromarray(image)), "txt": captions[0].encode(), "json": _json(record).encode()}
    return members if kinds is None else members | {MAP: _png(paint(kinds))}


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # owner 0 and time 0: the same bytes for every user and time
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
