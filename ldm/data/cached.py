"""Data that `ldm cache` made: latents and captions, perhaps contexts, in place of images.

A folder of safetensors shards, each of them the samples of one range of indices:

    moments (n, M, h, w)        what the autoencoder's encoder gives; float32
    captions (bytes,)           each image's list of captions as JSON, or null where they cannot be read, end to end
    caption_ends (n,)           where each image's JSON ends; int64
    context (k, L, D)           of every caption, and `pooled` (k, P), where the text encoder is frozen; float32
    labels (n,)                 each image's class, for a model of classes, -1 where it has none; int64
    first (n,)                  the row in these of each image's first caption; int64

Beside them `empty.safetensors` holds the context of the empty prompt, and `cache.json`, which is written last, what
all of it was made of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldm.config.data import Size
from ldm.data.broken import Broken, UnreadableError
from ldm.data.classes import class_number
from ldm.errors import UserError

INDEX = "cache.json"
EMPTY = "empty.safetensors"
VERSION = 1


@dataclass(frozen=True)
class Facts:
    """What a cache was made of; two of the same facts hold the same numbers, up to rounding."""

    images: int
    size: int  # side of the images, cut in the middle
    caption_fields: tuple[str, ...]
    per_shard: int
    data: str  # digest of names, sizes and captions
    autoencoder: str  # digest of the encoder's weights
    text: str | None  # digest of the frozen text encoder and its tokenizer; None: captions alone are kept
    version: int = VERSION

    def differing(self, other: Facts) -> list[str]:
        """Names of the fields that are not the same."""
        ours, theirs = asdict(self), asdict(other)
        return [name for name in ours if ours[name] != theirs[name]]


@dataclass(frozen=True)
class Shard:
    """One file of a cache."""

    name: str
    first: int  # index of its first image
    images: int
    digest: str  # of the file's bytes


class CachedData:
    """A cache to train from; files are mapped into memory when something in them is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / INDEX).is_file():
            raise UserError(f"{folder} is a cache that is not whole: finish it with ldm cache --resume")
        try:
            content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            self.facts = parse_facts(content["facts"])
            self.shards = [Shard(**shard) for shard in content["shards"]]
            self.empty_digest: str | None = content["empty"]
            self._names: list[str] | None = content.get("class_names")
            self.unreadable = {int(index): Broken(*words) for index, words in content["unreadable"].items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder / INDEX} is no index of a cache: it is damaged, make it anew") from error
        self._firsts = np.array([shard.first for shard in self.shards])
        self._open: dict[str, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return self.facts.images

    def summary(self) -> str:
        """A line on what it holds."""
        kinds = "latents and contexts" if self.has_context else "latents"
        size = sum(path.stat().st_size for path in self.folder.iterdir())
        broken = f"; {len(self.unreadable):,} cannot be read, which {INDEX} lists" if self.unreadable else ""
        return f"{kinds} of {len(self):,} images in {self.folder}, {size / 2**20:,.1f} MiB{broken}"

    @property
    def has_context(self) -> bool:
        """Whether it holds what a frozen text encoder made of the captions."""
        return self.facts.text is not None

    def image(self, index: int) -> Image.Image:
        """UserError: there are none."""
        raise UserError(f"{self.folder} is a cache, which holds latents and no images: name the data it was made of")

    def shape(self, index: int) -> Size:
        """UserError: it is not known."""
        self.image(index)
        raise AssertionError

    def stamp(self, index: int) -> str:
        """What tells one image from another."""
        return f"{self.facts.data} {index}"

    def captions(self, index: int) -> list[str]:
        """The captions of an image; UnreadableError where its data had none that could be read."""
        shard, row = self._place(index)
        ends = shard["caption_ends"]
        start = int(ends[row - 1]) if row else 0
        captions: list[str] | None = json.loads(shard["captions"][start : int(ends[row])].numpy().tobytes())
        if captions is None:
            raise UnreadableError(self.unreadable[index].name, self.unreadable[index].reason)
        return captions

    def label(self, index: int) -> int:
        """The class of an image; UserError where the cache was made for models that are told none."""
        shard, row = self._place(index)
        if "labels" not in shard:
            raise self._without_classes()
        return class_number(int(shard["labels"][row]), f"image {index} of {self.folder}")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by number, () where numbers are all that is known; UserError where there are none."""
        if self._names is None:
            raise self._without_classes()
        return tuple(self._names)

    def _without_classes(self) -> UserError:
        return UserError(f"{self.folder} is a cache without classes: make it with the configuration that is trained")

    def moments(self, indices: Sequence[int]) -> Tensor:
        """Posterior moments (B, M, h, w) of images; M is 2C, or C for an autoencoder of kind vq."""
        places = [self._place(index) for index in indices]
        return torch.stack([shard["moments"][row] for shard, row in places])

    def embedded(self, kind: Literal["context", "pooled"], indices: Sequence[int], captions: Sequence[str]) -> Tensor:
        """Contexts (B, L, D), or pooled texts (B, P), of a caption of each image or of the empty prompt."""
        return torch.stack([self._row(kind, *each) for each in zip(indices, captions, strict=True)])

    def _row(self, kind: str, index: int, caption: str) -> Tensor:
        if not caption:
            return self.file(EMPTY)[kind][0]
        shard, row = self._place(index)
        return shard[kind][int(shard["first"][row]) + self.captions(index).index(caption)]

    def _place(self, index: int) -> tuple[dict[str, Tensor], int]:
        """The shard of an image, and its row there."""
        number = int(np.searchsorted(self._firsts, index, side="right")) - 1
        shard = self.shards[number]
        return self.file(shard.name), index - shard.first

    def file(self, name: str) -> dict[str, Tensor]:
        """The tensors of one of its files; UserError when it is not whole."""
        if name not in self._open:
            try:
                with safe_open(self.folder / name, framework="pt") as file:
                    self._open[name] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                raise UserError(f"{self.folder / name} is missing or damaged: make the cache anew") from error
        return self._open[name]


def is_cache(data: str) -> bool:
    """Whether `--data` names a folder of `ldm cache`, be it whole or not."""
    return (Path(data) / INDEX).is_file() or (Path(data) / EMPTY).is_file() or any(Path(data).glob(shard_name("*")))


def shard_name(number: int | str) -> str:
    """The name of one of a cache's files."""
    return f"latents-{number:05d}.safetensors" if isinstance(number, int) else f"latents-{number}.safetensors"


def parse_facts(content: dict[str, Any]) -> Facts:
    """Facts out of JSON; ValueError or TypeError for anything else."""
    if content.get("version") != VERSION:
        raise ValueError(f"version {content.get('version')}")
    return Facts(**content | {"caption_fields": tuple(content["caption_fields"])})


def file_digest(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
