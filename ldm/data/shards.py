"""WebDataset shards: tar files of images and captions, here or behind http(s), read as streams."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from ldm.data import captions as captions_of
from ldm.data.broken import UnreadableError
from ldm.data.cache import default_cache
from ldm.data.classes import class_number
from ldm.data.images import decode, decode_map
from ldm.data.progress import track
from ldm.data.remote import fetch_if_there, is_remote, open_remote, version_of
from ldm.errors import UserError

INDEX = (
    "index.json"  # {"shardlist": [{"url": "000000.tar", "nsamples": 1000}, ...]}, as WebDataset's own tools write it
)
MAP = "map.png"  # suffix of a sample's map of classes
META = re.compile(r"__[^/]*__($|/)")  # members that webdataset passes over
SUFFIXES = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "avif", "jp2")


@dataclass(frozen=True)
class Packed:
    """One sample of a shard as it lies there, not decoded."""

    index: int  # in the whole data set
    name: str  # shard.tar:key
    members: dict[str, Any]  # bytes by suffix
    fault: str | None = None  # why there are none


class Shards:
    """A list of tar shards and the numbers of samples in them."""

    class_names = ()  # the shards tell numbers

    def __init__(
        self,
        urls: Sequence[str],
        counts: Sequence[int],
        caption_fields: tuple[str, ...] = (),
        class_field: str | None = None,
    ) -> None:
        self.urls, self.counts = list(urls), np.asarray(counts)
        self.caption_fields, self.class_field = caption_fields, class_field
        self._starts = self.counts.cumsum() - self.counts

    def __len__(self) -> int:
        return int(self.counts.sum())

    def read(self, shard: int) -> Iterator[Packed]:
        """Every sample of a shard in its order; those that a damaged or shortened file does not give are faulty ones.

        Raises UserError where the shard does not come over the network.
        """
        url, start, count = self.urls[shard], int(self._starts[shard]), int(self.counts[shard])
        found, fault = 0, "the shard ends before it"
        try:
            with open_shard(url) as file:
                for sample in _grouped(file, url):
                    if found == count:
                        return
                    yield Packed(start + found, f"{url}:{sample.pop('__key__')}", sample)
                    found += 1
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            fault = f"the shard is damaged: {' '.join(str(error).split())}"
        for position in range(found, count):
            yield Packed(start + position, f"{url}:{position}", {}, fault)

    def image(self, packed: Packed) -> Image.Image:
        """The image of a sample, upright and in RGB; UnreadableError when there is none or it cannot be read."""
        if packed.fault:
            raise UnreadableError(packed.name, packed.fault)
        for suffix, content in packed.members.items():
            if suffix != MAP and suffix.rsplit(".", 1)[-1] in SUFFIXES:
                return decode(content, packed.name)
        raise UnreadableError(packed.name, f"it has no image, only {', '.join(packed.members) or 'nothing'}")

    def map(self, packed: Packed) -> Image.Image:
        """The map of classes of a sample, its `.map.png`; UnreadableError when there is none or it cannot be read."""
        if packed.fault:
            raise UnreadableError(packed.name, packed.fault)
        if MAP not in packed.members:
            raise UnreadableError(packed.name, f"it has no .{MAP}, only {', '.join(packed.members) or 'nothing'}")
        return decode_map(packed.members[MAP], packed.name)

    def captions(self, packed: Packed) -> list[str]:
        """All captions of a sample, of its `.json` or `.txt`; UnreadableError when they cannot be read."""
        if packed.fault:
            raise UnreadableError(packed.name, packed.fault)
        try:
            members = packed.members
            return captions_of.of_contents(members.get("txt"), members.get("json"), self.caption_fields)
        except ValueError as error:
            raise UnreadableError(packed.name, error) from error

    def label(self, packed: Packed) -> int:
        """The class of a sample, of its `.cls` or a field of its `.json`; UnreadableError when it has none."""
        if packed.fault:
            raise UnreadableError(packed.name, packed.fault)
        if self.class_field is None:
            return class_number(packed.members.get("cls", b"").decode("utf-8", "replace").strip(), packed.name)
        try:
            return class_number(captions_of.field_of(packed.members.get("json"), self.class_field), packed.name)
        except ValueError as error:
            raise UnreadableError(packed.name, error) from error

    def spread(self, count: int, rank: int = 0, processes: int = 1) -> Iterator[Packed]:
        """About `count` samples, the first of as many shards as can be; of them, those of this process' shards."""
        chosen = np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int)
        quotas = np.bincount(np.searchsorted(self._starts, chosen, side="right") - 1, minlength=len(self.urls))
        for shard in np.flatnonzero(quotas)[rank::processes]:
            for packed, _ in zip(self.read(int(shard)), range(quotas[shard]), strict=False):
                yield packed


def open_shard(url: str) -> BinaryIO:
    """A shard's bytes, from its beginning."""
    return open_remote(url) if is_remote(url) else open(url, "rb")


def _grouped(file: BinaryIO, url: str) -> Iterator[dict[str, Any]]:
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    # webdataset's own opener runs curl, which does not go on where a connection broke.
    members = (member | {"__url__": url} for member in tar_file_iterator(file))
    for sample in group_by_keys(members):
        del sample["__url__"]
        yield sample


def shards_of(data: str) -> list[str] | None:
    """The shards that a path, a brace pattern, a URL or a folder names; None where `data` is something else."""
    if not data.removesuffix(".gz").endswith(".tar"):
        return _folder_of_shards(Path(data)) if Path(data).is_dir() else None
    from braceexpand import braceexpand

    try:
        urls = list(braceexpand(data))
    except ValueError as error:
        raise UserError(f"data {data!r}: the braces do not balance") from error
    missing = [url for url in urls if not is_remote(url) and not Path(url).is_file()]
    if missing:
        others = f" and {len(missing) - 1} other shards" if len(missing) > 1 else ""
        raise UserError(f"no data at {missing[0]!r}{others} of {len(urls)}")
    return urls


def _folder_of_shards(folder: Path) -> list[str] | None:
    """The shards in a folder; None where images lie beside them, of which a .tar may be somebody's backup."""
    paths = sorted(folder.iterdir())
    if any(path.suffix[1:].lower() in SUFFIXES or path.stem == "metadata" for path in paths):
        return None
    return [str(path) for path in paths if path.suffix == ".tar"] or None


def open_shards(urls: Sequence[str], caption_fields: tuple[str, ...], class_field: str | None = None) -> Shards:
    """The shards with their numbers of samples: out of an index beside them, else counted once and remembered."""
    known: dict[str, int] = {}
    for folder in {url.rpartition("/")[0] for url in urls}:
        known |= _index(folder)
    unknown = [url for url in urls if url not in known]
    if unknown:
        with ThreadPoolExecutor(8) as pool:  # each waits for a disk or a network
            counts = track(pool.map(_counted, unknown), "counting samples of shards, once", len(unknown))
            known |= dict(zip(unknown, counts, strict=True))
    counts_in_order = [known[url] for url in urls]
    if not sum(counts_in_order):
        raise UserError(f"{urls[0]} and {len(urls) - 1} more shards hold no samples")
    return Shards(urls, counts_in_order, caption_fields, class_field)


def write_index(folder: Path, counts: dict[str, int]) -> None:
    """Write the index of shards that lie in `folder`."""
    shardlist = [{"url": name, "nsamples": count} for name, count in counts.items()]
    content = {"wids_version": 1, "shardlist": shardlist}
    (folder / INDEX).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _index(folder: str) -> dict[str, int]:
    """Samples by shard, as the index in a folder tells; nothing where there is none."""
    path = f"{folder}/{INDEX}" if folder else INDEX
    try:
        content = fetch_if_there(path) if is_remote(path) else Path(path).read_bytes()
    except FileNotFoundError:
        return {}
    if content is None:
        return {}
    try:
        entries = json.loads(content)["shardlist"]
        return {f"{folder}/{entry['url']}" if folder else entry["url"]: int(entry["nsamples"]) for entry in entries}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no index of shards: expected a shardlist of url and nsamples; delete it") from error


def _counted(url: str) -> int:
    """Samples in a shard, remembered in the cache as long as the shard does not change."""
    if is_remote(url):
        facts = f"{url} {version_of(url)}"
    else:
        status = os.stat(url)
        facts = f"{Path(url).resolve()} {status.st_size} {status.st_mtime_ns}"
    path = default_cache() / "shards" / hashlib.blake2b(facts.encode(), digest_size=12).hexdigest()
    if path.is_file():
        return int(path.read_text())
    count = _count(url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        work.write_text(str(count))
        work.replace(path)
    except OSError:
        return count  # counted again next time
    return count


def _count(url: str) -> int:
    """Groups of neighbouring members with one key, as webdataset groups them; contents are passed over."""
    from webdataset.tariterators import base_plus_ext

    count, last = 0, None
    with open_shard(url) as file:
        try:
            # Only a local file can be sought in; `mode` r|* reads through what it passes over.
            with tarfile.open(fileobj=file, mode="r|*" if is_remote(url) else "r:*") as archive:
                for member in archive:
                    key = base_plus_ext(member.name)[0]
                    if not member.isreg() or key is None or META.match(member.name):
                        continue
                    count, last = count + (key != last), key
        except (tarfile.TarError, EOFError) as error:
            if not count:
                raise UserError(f"{url} is not a tar file: {' '.join(str(error).split())}") from error
    return count
