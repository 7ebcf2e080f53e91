"""Data sources: the protocol of all kinds, and opening what `--data` names.

A kind of data is one class, registered in `ldm.registry.DATA_SOURCES`. Most kinds subclass `IndexedSource`:

    @DATA_SOURCES.register("numbers")
    class Numbers(IndexedSource):
        section = NumbersConfig  # options below `data.numbers`; leave it out if there are none
        accepts = "`numbers`"
        @classmethod
        def matches(cls, data): return data == "numbers"
        @classmethod
        def open(cls, data, config, split): return cls(config.numbers)
        def __len__(self): ...
        def image(self, index): ...
        def captions(self, index): ...
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import index as index_of
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from PIL import Image

from ldm.config.section import Section
from ldm.data.broken import Broken, UnreadableError
from ldm.data.classes import Labels
from ldm.data.loader import BatchShare, TrainingData, make_loader
from ldm.data.preparing import Batch
from ldm.data.validation import Validation, held_out
from ldm.errors import UserError
from ldm.registry import DATA_SOURCES

if TYPE_CHECKING:
    from ldm.config.data import DataConfig, Size
    from ldm.config.root import Config
    from ldm.data.cached import CachedData

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Block:
    """Neighbouring samples that `ldm cache` writes to one file; of a stream, one shard."""

    number: int
    first: int  # index of the first sample
    images: int

    @property
    def indices(self) -> range:
        """Indices of the samples."""
        return range(self.first, self.first + self.images)


class Source(ABC):
    """Captioned images to train on.

    Methods with a parameter `item` read one sample. Items come from `spread`, `scan` and `read`; any index is an item
    where there is `random_access`, and `operator.index(item)` is a sample's index. All of them raise UnreadableError
    for a sample that cannot be used.
    """

    section: ClassVar[type[Section] | None] = None  # options below `data.NAME`, with the name of the registry
    accepts: ClassVar[str] = ""  # what `--data` may be, for an error message
    random_access: ClassVar[bool]  # whether samples can be read in any order
    has_maps: bool = False  # whether images can have maps of classes
    labels: Labels | None = None
    name = "the data"

    @classmethod
    def matches(cls, data: str) -> bool:
        """Return whether `--data` names data of this kind."""
        return False

    @classmethod
    def open(cls, data: str, config: DataConfig, split: Split) -> Source:
        """Open the data of `--data`; sources without a test split ignore `split`."""
        raise NotImplementedError

    @abstractmethod
    def __len__(self) -> int:
        """Return number of samples."""

    @property
    def latents(self) -> CachedData | None:
        """This source if it holds latents in place of images."""
        return None

    @abstractmethod
    def image(self, item: Any) -> Image.Image | np.ndarray:
        """Read an RGB image, as uint8 (H, W, 3) where no decoding is needed."""

    @abstractmethod
    def captions(self, item: Any) -> list[str]:
        """Read all captions of an image, at least one; training chooses one each time."""

    def map(self, item: Any) -> Image.Image | np.ndarray:
        """Read the classes of an image's pixels, mode L or uint8 (H, W)."""
        raise self.no_maps()

    def label(self, item: Any) -> int:
        """Read the class of an image.

        Raises:
            UserError: if the data has no classes.
        """
        return self._labels().number(index_of(item), self.name_of(item))

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes by number, () where only numbers are known.

        Raises:
            UserError: if there are no classes.
        """
        return self._labels().names

    def name_of(self, item: Any) -> str:
        """Name a sample in messages: its file, or its row in a table."""
        return f"{self.name}, image {index_of(item)}"

    def stamp(self, item: Any) -> str:
        """Identify an image and its version without decoding it."""
        return self.name_of(item)

    @abstractmethod
    def batches(
        self,
        config: Config,
        share: BatchShare,
        start: int,
        end: int,
        images: bool = True,
        unreadable: Mapping[int, Broken] | None = None,
    ) -> Generator[Batch, None, None]:
        """Yield this process' micro-batches of the optimiser steps `start` to `end`.

        Args:
            images: whether to read images; without them latents are cached.
            unreadable: samples known to be broken where images are not read.
        """

    @abstractmethod
    def spread(self, count: int, rank: int = 0, processes: int = 1) -> Iterator[Any]:
        """Yield this process' part of about `count` items that are spread evenly over the data."""

    @abstractmethod
    def scan(self, count: int) -> Iterator[Any]:
        """Yield all items in order; a stream yields `spread(count)`."""

    @abstractmethod
    def preview(self, count: int) -> IndexedSource:
        """Return a source with random access: this one, or about `count` samples of it in memory."""

    @abstractmethod
    def blocks(self, images: int) -> list[Block]:
        """Divide all samples into blocks of `images`, or of one shard each."""

    @abstractmethod
    def read(self, block: Block) -> Iterator[Any]:
        """Yield the items of a block."""

    @abstractmethod
    def fingerprint(self, block: Block) -> str:
        """Digest names, sizes and captions of a block, as far as they are known without decoding images."""

    @abstractmethod
    def class_fingerprint(self, block: Block) -> str:
        """Return a digest of the classes of a block of samples."""

    @abstractmethod
    def held_out(self, config: DataConfig) -> np.ndarray:
        """Return the indices (n,) of the samples that are held out of training."""

    @abstractmethod
    def validation(self, config: DataConfig, count: int) -> Validation | None:
        """Return the held-out samples, of a stream `count` of them in memory; None if there are none."""

    def other_scenes(self, config: DataConfig) -> Source | None:
        """Return unlimited data of the same kind that training does not use, or None."""
        return None

    def no_maps(self) -> UserError:
        """Return the error of data without maps."""
        return UserError(f"data.map_classes is set but {self.name} has no maps of classes: use data with maps")

    def _labels(self) -> Labels:
        if self.labels is None:
            raise UserError(
                f"data {self.name!r} has no classes: set data.class_field to a column or JSON field, or to `folder` "
                "for images in one folder a class"
            )
        return self.labels


class IndexedSource(Source):
    """A source whose items are the indices of its images."""

    random_access = True

    def shape(self, index: int) -> Size:
        """Height and width of an image."""
        image = self.image(index)
        return (image.shape[0], image.shape[1]) if isinstance(image, np.ndarray) else (image.height, image.width)

    def batches(
        self,
        config: Config,
        share: BatchShare,
        start: int,
        end: int,
        images: bool = True,
        unreadable: Mapping[int, Broken] | None = None,
    ) -> Generator[Batch, None, None]:
        seed, sizes, classes = config.training.seed, config.image_sizes, config.uses_labels
        held = self.held_out(config.data)
        data = TrainingData(self, config.data, share, seed, images, sizes, unreadable, classes, without=held)
        return make_loader(data, start, end, config.data.workers)

    def key(self, index: int) -> str:
        """Identify an image, alike wherever the data lies; decides whether the image is held out."""
        return str(index)

    def held_out(self, config: DataConfig) -> np.ndarray:
        return held_out(self, config)

    def validation(self, config: DataConfig, count: int) -> Validation | None:
        held = self.held_out(config)
        return Validation(self, held, cached=True) if len(held) else None

    def spread(self, count: int, rank: int = 0, processes: int = 1) -> Iterator[int]:
        chosen = np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int)
        yield from chosen[rank::processes].tolist()

    def scan(self, count: int) -> Iterator[int]:
        yield from range(len(self))

    def preview(self, count: int) -> IndexedSource:
        return self

    def blocks(self, images: int) -> list[Block]:
        firsts = range(0, len(self), images)
        return [Block(number, first, min(images, len(self) - first)) for number, first in enumerate(firsts)]

    def read(self, block: Block) -> Iterator[int]:
        yield from block.indices

    def fingerprint(self, block: Block) -> str:
        captions = (_json_or_null(self.captions, index) for index in block.indices)
        return digest(f"{self.stamp(index)} {text}" for index, text in zip(block.indices, captions, strict=True))

    def class_fingerprint(self, block: Block) -> str:
        return digest(_json_or_null(self.label, index) for index in block.indices)


def digest(words: Iterable[str]) -> str:
    """Digest a sequence of strings."""
    found = hashlib.blake2b(digest_size=16)
    for word in words:
        found.update(word.encode("utf-8", "surrogatepass") + b"\0")
    return found.hexdigest()


def _json_or_null(read: Any, index: int) -> str:
    try:
        return json.dumps(read(index))
    except UnreadableError:
        return "null"


def open_source(data: str, config: DataConfig, split: Split = "train") -> Source:
    """Open what `--data` names, by the registered kind that matches it; those registered last are asked first.

    Raises:
        UserError: if no kind matches, or the data cannot be opened.
    """
    kinds: list[type[Source]] = list(DATA_SOURCES.values())
    for kind in reversed(kinds):
        if kind.matches(data):
            return kind.open(data, config, split)
    raise UserError(f"no data at {data!r}: expected {', '.join(kind.accepts for kind in reversed(kinds))}")


def open_indexed(data: str, config: DataConfig, split: Split = "train") -> IndexedSource:
    """Open data whose images can be read in any order.

    Raises:
        UserError: for a stream.
    """
    source = open_source(data, config, split)
    if not source.random_access:
        raise UserError(
            f"{data} is read as a stream, but random access to images is required: use a folder, parquet or scenes"
        )
    return source.preview(len(source))
