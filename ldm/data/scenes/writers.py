"""The data set as files: an image folder for Hugging Face `datasets`, or WebDataset's tar shards."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.data.scenes.compose import Split
from ldm.data.scenes.making import Order, make_all
from ldm.data.scenes.scene import Scene
from ldm.data.shards import write_index
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
) -> None:
    """Write `num` scenes as PNG files beside a `metadata.jsonl` with text, captions and the scene's record.

    Raises UserError when the folder has files already or cannot be written.
    """
    order = Order(num, size, seed, split, concepts)
    folder = _empty_folder(out, order)
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        for index, (scene, picture) in enumerate(make_all(order, processes)):
            name = f"{index:06d}.png"
            (folder / name).write_bytes(_png(picture))
            captions = scene.captions()
            # The record goes as one string: its optional fields would give the table's columns varying types.
            row = {"file_name": name, "text": captions[0], "captions": captions, "record": _json(scene.to_record())}
            metadata.write(_json(row) + "\n")


def write_webdataset(
    out: str | Path,
    num: int,
    size: int = 64,
    seed: int = 0,
    split: Split = "train",
    processes: int | None = None,
    concepts: int | None = None,
) -> None:
    """Write `num` scenes as tar shards of .png, .txt (the first caption) and .json (captions, record), with an index.

    Raises UserError when the folder has files already or cannot be written.
    """
    order = Order(num, size, seed, split, concepts)
    folder = _empty_folder(out, order)
    made = enumerate(make_all(order, processes))
    counts = {f"{first // SHARD:06d}.tar": min(SHARD, num - first) for first in range(0, num, SHARD)}
    for name, count in counts.items():
        with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as archive:
            for _ in range(count):
                index, (scene, picture) = next(made)
                for suffix, content in _members(scene, picture).items():
                    _add(archive, f"{index:06d}.{suffix}", content)
    write_index(folder, counts)


def _empty_folder(out: str | Path, order: Order) -> Path:
    order.check()
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        full = any(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be used as a folder: {error.strerror}; name another one") from error
    if full:
        raise UserError(f"{folder} has files already: empty it or name another folder")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} is not writable: change its permissions or name another folder")
    return folder


def _members(scene: Scene, picture: np.ndarray) -> dict[str, bytes]:
    captions = scene.captions()
    record = {"captions": captions, "record": scene.to_record()}
    return {"png": _png(picture), "txt": captions[0].encode(), "json": _json(record).encode()}


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # owner 0 and time 0: the same bytes whoever writes, and when
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
