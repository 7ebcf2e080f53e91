"""The format of `ldm cache`: latents and captions, optionally contexts, in place of images.

A folder of safetensors files, each with the samples of one range of indices:

    moments (n, M, h, w)        output of the autoencoder's encoder; float32
    captions (bytes,)           each image's list of captions as JSON, null if unreadable, concatenated
    caption_ends (n,)           where each image's JSON ends; int64
    context (k, L, D)           of every caption, and `pooled` (k, P), where the text encoder is frozen; float32
    labels (n,)                 each image's class, if the model needs classes; -1 for none; int64
    first (n,)                  row of each image's first caption in these; int64

`empty.safetensors` holds the context of the empty prompt. `cache.json`, which is written last, describes what the cache
was made from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldm.data.broken import Broken, UnreadableError
from ldm.data.classes import class_number
from ldm.data.sources import IndexedSource, Split
from ldm.errors import UserError
from ldm.storage.renames import current_facts
from ldm.storage.store import check_access

if TYPE_CHECKING:
    from ldm.config.data import DataConfig

INDEX = "cache.json"
EMPTY = "empty.safetensors"
VERSION = 1


@dataclass(frozen=True)
class Facts:
    """What a cache was made from; caches with equal facts hold the same numbers, up to rounding."""

    images: int
    size: int  # side of the center-cropped images
    caption_fields: tuple[str, ...]
    per_shard: int
    data: str  # digest of names, sizes and captions
    autoencoder: str  # digest of the encoder's weights
    text: str | None  # digest of the frozen text encoder and its tokenizer; None: only captions are stored
    version: int = VERSION

    def differing(self, other: Facts) -> list[str]:
        """Return names of the fields that differ."""
        ours, theirs = asdict(self), asdict(other)
        return [name for name in ours if ours[name] != theirs[name]]


@dataclass(frozen=True)
class Shard:
    """One file of a cache."""

    name: str
    first: int  # index of its first image
    images: int
    digest: str  # of the file's bytes


class CachedData(IndexedSource):
    """A cache to train from; each file is mapped into memory when it is first used."""

    accepts = "a folder of `ldm cache`"

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, str(folder)
        if not (folder / INDEX).is_file():
            raise UserError(f"{folder} is an incomplete cache: finish it with ldm cache --resume")
        try:
            content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            self.facts = parse_facts(content["facts"])
            self.shards = [Shard(**current_facts(shard)) for shard in content["shards"]]
            self.empty_digest: str | None = content["empty"]
            self._names: list[str] | None = content.get("class_names")
            self.unreadable = {int(index): Broken(*words) for index, words in content["unreadable"].items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder / INDEX} is not the index of a cache: delete the folder and run ldm cache again"
            ) from error
        self._firsts = np.array([shard.first for shard in self.shards])
        self._open: dict[str, dict[str, Tensor]] = {}

    @classmethod
    def matches(cls, data: str) -> bool:
        """Return whether `data` is a folder of `ldm cache`, complete or not."""
        return is_cache(data)

    @classmethod
    def open(cls, data: str, config: DataConfig, split: Split) -> CachedData:
        """Read the index."""
        return cls(Path(data))

    def __len__(self) -> int:
        return self.facts.images

    @property
    def latents(self) -> CachedData:
        return self

    def summary(self) -> str:
        """Return one line about the contents."""
        kinds = "latents and contexts" if self.has_context else "latents"
        size = sum(path.stat().st_size for path in self.folder.iterdir())
        broken = f"; {len(self.unreadable):,} cannot be read (listed in {INDEX})" if self.unreadable else ""
        return f"{kinds} of {len(self):,} images in {self.folder}, {size / 2**20:,.1f} MiB{broken}"

    @property
    def has_context(self) -> bool:
        """Whether it holds the output of a frozen text encoder."""
        return self.facts.text is not None

    def image(self, index: int) -> Image.Image:
        """UserError: a cache has no images."""
        raise UserError(f"{self.folder} is a cache, which holds latents and no images: name the data it was made from")

    def stamp(self, index: int) -> str:
        """Digest of the data, and the index."""
        return f"{self.facts.data} {index}"

    def captions(self, index: int) -> list[str]:
        shard, row = self._place(index)
        ends = shard["caption_ends"]
        start = int(ends[row - 1]) if row else 0
        captions: list[str] | None = json.loads(shard["captions"][start : int(ends[row])].numpy().tobytes())
        if captions is None:
            raise UnreadableError(self.unreadable[index].name, self.unreadable[index].reason)
        return captions

    def label(self, index: int) -> int:
        """Return the class of an image.

        Raises:
            UserError: if the cache was made for a model without classes.
        """
        shard, row = self._place(index)
        if "labels" not in shard:
            raise self._without_classes()
        return class_number(int(shard["labels"][row]), f"image {index} of {self.folder}")

    @property
    def class_names(self) -> tuple[str, ...]:
        if self._names is None:
            raise self._without_classes()
        return tuple(self._names)

    def _without_classes(self) -> UserError:
        return UserError(f"{self.folder} is a cache without classes: make it again with --config of the model to train")

    def moments(self, indices: Sequence[int]) -> Tensor:
        """Posterior moments (B, M, h, w) of images; M is 2C, or C for an autoencoder of kind vq."""
        places = [self._place(index) for index in indices]
        return torch.stack([shard["moments"][row] for shard, row in places])

    def embedded(self, kind: Literal["context", "pooled"], indices: Sequence[int], captions: Sequence[str]) -> Tensor:
        """Return contexts (B, L, D), or pooled texts (B, P), of a caption of each image or of the empty prompt."""
        return torch.stack([self._row(kind, *each) for each in zip(indices, captions, strict=True)])

    def _row(self, kind: str, index: int, caption: str) -> Tensor:
        if not caption:
            return self.file(EMPTY)[kind][0]
        shard, row = self._place(index)
        return shard[kind][int(shard["first"][row]) + self.captions(index).index(caption)]

    def _place(self, index: int) -> tuple[dict[str, Tensor], int]:
        """Return the tensors of the file with an image, and the image's row in them."""
        number = int(np.searchsorted(self._firsts, index, side="right")) - 1
        shard = self.shards[number]
        return self.file(shard.name), index - shard.first

    def file(self, name: str) -> dict[str, Tensor]:
        """Read the tensors of one file.

        Raises:
            UserError: if it is damaged.
        """
        if name not in self._open:
            check_access(self.folder / name)
            try:
                with safe_open(self.folder / name, framework="pt") as file:
                    self._open[name] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                raise UserError(f"{self.folder / name} is missing or damaged: run ldm cache again") from error
        return self._open[name]


def is_cache(data: str) -> bool:
    """Return whether `--data` names a folder of `ldm cache`, complete or not."""
    return (Path(data) / INDEX).is_file() or (Path(data) / EMPTY).is_file() or any(Path(data).glob(shard_name("*")))


def shard_name(number: int | str) -> str:
    """Return the name of a cache's file."""
    return f"latents-{number:05d}.safetensors" if isinstance(number, int) else f"latents-{number}.safetensors"


def parse_facts(content: dict[str, Any]) -> Facts:
    """Convert JSON to facts; ValueError or TypeError if it is something else."""
    if content.get("version") != VERSION:
        raise ValueError(f"version {content.get('version')}")
    return Facts(**current_facts(content) | {"caption_fields": tuple(content["caption_fields"])})


def file_digest(path: Path) -> str:
    """Digest a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
