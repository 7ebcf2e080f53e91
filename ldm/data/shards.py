"""WebDataset shards: tar files of images and captions, local or remote, read as streams."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image
from pydantic import Field

from ldm.config.section import Section
from ldm.data import captions as captions_of
from ldm.data import shard_index
from ldm.data.broken import Broken, UnreadableError
from ldm.data.classes import class_number
from ldm.data.files import is_remote, list_files, open_file
from ldm.data.images import IMAGE_SUFFIXES, decode, decode_map
from ldm.data.loader import BatchShare
from ldm.data.preparing import Batch
from ldm.data.preview import HeldSource
from ldm.data.shard_names import split_name
from ldm.data.sources import Block, IndexedSource, Source, Split, digest
from ldm.data.streaming import StreamData, stream
from ldm.data.validation import Validation, held_out_count
from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.config.data import DataConfig
    from ldm.config.root import Config

MAP = "map.png"  # suffix of a sample's map of classes


class ShardsConfig(Section):
    """How `.tar` shards are read."""

    lanes: int | None = Field(None, ge=1)  # streams that fill a batch; None: as many as batch_size and shards allow
    shuffle_buffer: int = Field(4096, ge=1)  # samples in memory to be shuffled, in all lanes together


@dataclass(frozen=True)
class Packed:
    """One sample of a shard, not decoded."""

    index: int  # in the whole data set
    name: str  # shard.tar:key
    members: dict[str, Any]  # bytes by suffix
    fault: str | None = None  # why there are no members

    def __index__(self) -> int:
        return self.index


class Shards(Source):
    """Tar shards and the numbers of samples in them; a sample has one image, a .txt or .json, perhaps a .cls."""

    section = ShardsConfig
    accepts = ".tar shards"
    random_access = False
    has_maps = True
    class_names = ()

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

    @classmethod
    def matches(cls, data: str) -> bool:
        """A path, brace pattern or URL that ends in .tar, or a folder of .tar files without images beside them."""
        return (_is_tar(data) and not Path(data).is_dir()) or bool(_shards_in(data))

    @classmethod
    def open(cls, data: str, config: DataConfig, split: Split) -> Shards:
        """Expand the pattern and look up or count the samples of each shard."""
        urls = _shards_in(data) or _expand(data)
        counts = shard_index.sample_counts(urls)
        if not sum(counts):
            raise UserError(f"{urls[0]} and {len(urls) - 1} more shards hold no samples")
        return cls(urls, counts, config.caption_fields, config.class_field)

    def __len__(self) -> int:
        return int(self.counts.sum())

    def read_shard(self, shard: int) -> Iterator[Packed]:
        """Yield every sample of a shard in order; those lost in a damaged or shortened file have a `fault`.

        Raises:
            UserError: if a remote shard cannot be read.
        """
        url, start, count = self.urls[shard], int(self._starts[shard]), int(self.counts[shard])
        found, fault = 0, "the shard ends before it"
        try:
            with open_file(url) as file:
                for sample in _grouped(file, url):
                    if found == count:
                        raise UserError(
                            f"{url} holds more than the {count} samples that {shard_index.INDEX} next to it states: "
                            "delete the index or write it again"
                        )
                    yield Packed(start + found, f"{url}:{sample.pop('__key__')}", sample)
                    found += 1
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            fault = f"the shard is damaged: {' '.join(str(error).split())}"
        for position in range(found, count):
            yield Packed(start + position, f"{url}:{position}", {}, fault)

    def image(self, item: Packed) -> Image.Image:
        """Decode the first member that is an image; `.png` comes before `.input.png`."""
        for suffix, content in sorted(_members(item).items(), key=lambda member: "." in member[0]):
            if suffix != MAP and f".{suffix.rsplit('.', 1)[-1]}" in IMAGE_SUFFIXES:
                return decode(content, item.name)
        raise UnreadableError(item.name, f"it has no image, only {', '.join(item.members) or 'nothing'}")

    def map(self, item: Packed) -> Image.Image:
        """Decode the member `.map.png`."""
        if MAP not in _members(item):
            raise UnreadableError(item.name, f"it has no .{MAP}, only {', '.join(item.members) or 'nothing'}")
        return decode_map(item.members[MAP], item.name)

    def captions(self, item: Packed) -> list[str]:
        """Read the captions of the `.json`, `.txt` or `.caption`."""
        members = _members(item)
        try:
            return captions_of.of_contents(_text(members), members.get("json"), self.caption_fields)
        except ValueError as error:
            raise UnreadableError(item.name, error) from error

    def label(self, item: Packed) -> int:
        """Read the class of the `.cls`, or of a field of the `.json`."""
        members = _members(item)
        if self.class_field is None:
            return class_number(members.get("cls", b"").decode("utf-8", "replace").strip(), item.name)
        try:
            return class_number(captions_of.field_of(members.get("json"), self.class_field), item.name)
        except ValueError as error:
            raise UnreadableError(item.name, error) from error

    def name_of(self, item: Packed) -> str:
        """The shard and the sample's key."""
        return item.name

    def batches(
        self,
        config: Config,
        share: BatchShare,
        start: int,
        end: int,
        images: bool = True,
        unreadable: Mapping[int, Broken] | None = None,
    ) -> Generator[Batch, None, None]:
        """Stream this process' micro-batches; images are always read."""
        if config.data.buckets is not None:
            raise UserError("data.buckets needs the shapes of all images, which streamed shards do not have: unset it")
        data = StreamData(self, config.data, share, config.training.seed, start, end, config.uses_labels)
        return stream(data, config.data.workers)

    def spread(self, count: int, rank: int = 0, processes: int = 1) -> Iterator[Packed]:
        """Yield about `count` samples, the first ones of as many shards as possible, of this process' shards."""
        quotas = self._quotas(count)
        for shard in np.flatnonzero(quotas)[rank::processes]:
            for packed, _ in zip(self.read_shard(int(shard)), range(quotas[shard]), strict=False):
                yield packed

    def _quotas(self, count: int) -> np.ndarray:
        """Divide about `count` samples evenly among the shards, (shards,)."""
        chosen = np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int)
        return np.bincount(self.shards_of(chosen), minlength=len(self.urls))

    def shards_of(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the shard of each sample, (n,)."""
        return np.searchsorted(self.counts.cumsum(), np.asarray(indices, dtype=int), side="right")

    def held_out(self, config: DataConfig) -> np.ndarray:
        """Return the first samples of shards, as many of each as `spread` yields: keys are not known in advance."""
        quotas = self._quotas(held_out_count(len(self), config))
        firsts = zip(self._starts.tolist(), quotas.tolist(), strict=True)
        return np.array([start + row for start, quota in firsts for row in range(quota)], dtype=int)

    def validation(self, config: DataConfig, count: int) -> Validation | None:
        """Hold up to `count` of the samples that are held out in memory."""
        if not (held := held_out_count(len(self), config)):
            return None
        source = HeldSource(self, held, limit=count)
        return Validation(source, np.arange(len(source)))

    def scan(self, count: int) -> Iterator[Packed]:
        """Yield about `count` samples spread over the shards."""
        return self.spread(count)

    def preview(self, count: int) -> IndexedSource:
        """Hold about `count` samples in memory."""
        return HeldSource(self, count)

    def blocks(self, images: int) -> list[Block]:
        """One block for each shard that is not empty."""
        pairs = zip(self._starts.tolist(), self.counts.tolist(), strict=True)
        return [Block(number, first, count) for number, (first, count) in enumerate(pairs) if count]

    def read(self, block: Block) -> Iterator[Packed]:
        """Yield the samples of a shard."""
        return self.read_shard(block.number)

    def fingerprint(self, block: Block) -> str:
        """Digest a shard's name, number of samples and, of a local file, size."""
        url = self.urls[block.number]
        size = "" if is_remote(url) else str(Path(url).stat().st_size)
        return digest([url.rpartition("/")[2], str(block.images), size])

    def class_fingerprint(self, block: Block) -> str:
        """The field that holds classes."""
        return str(self.class_field)


def _members(item: Packed) -> dict[str, Any]:
    if item.fault:
        raise UnreadableError(item.name, item.fault)
    return item.members


def _grouped(file: BinaryIO, url: str) -> Iterator[dict[str, Any]]:
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    # webdataset's own opener runs curl, which does not continue where a connection broke.
    members = (member | {"__url__": url} for member in tar_file_iterator(file))
    for sample in group_by_keys(members, split_name):
        del sample["__url__"]
        yield sample


def _is_tar(name: str) -> bool:
    return name.removesuffix(".gz").endswith(".tar")


def _expand(data: str) -> list[str]:
    """Expand a brace pattern below the folders that exist; UserError if a local file is missing."""
    from braceexpand import braceexpand

    if Path(data).is_file():
        return [data]
    # Braces in the name of an existing folder are part of the name.
    folder = "" if is_remote(data) else next((str(path) for path in Path(data).parents if path.is_dir()), "")
    pattern = data[len(folder) :] if data.startswith(folder) else data
    try:
        urls = [data.removesuffix(pattern) + each for each in braceexpand(pattern)]
    except ValueError as error:
        raise UserError(f"data {data!r}: the braces are not balanced") from error
    missing = [url for url in urls if not is_remote(url) and not Path(url).is_file()]
    if missing:
        others = f" and {len(missing) - 1} other shards" if len(missing) > 1 else ""
        raise UserError(f"no data at {missing[0]!r}{others} of {len(urls)}")
    return urls


def _shards_in(folder: str) -> list[str]:
    """The .tar files in a folder; none where there are images beside them, as a .tar may then be a backup."""
    if re.search(r"\.(tar|gz|parquet)$", folder) if is_remote(folder) else not Path(folder).is_dir():
        return []
    names = [Path(name) for name in list_files(folder, below=False)]
    if any(name.suffix.lower() in IMAGE_SUFFIXES or name.stem == "metadata" for name in names):
        return []
    return sorted(f"{folder.rstrip('/')}/{name}" for name in names if name.suffix == ".tar")


def _text(members: Mapping[str, bytes]) -> bytes | None:
    return next((members[suffix[1:]] for suffix in captions_of.TEXT_SUFFIXES if suffix[1:] in members), None)
