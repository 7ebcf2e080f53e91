"""Some images and captions of a source, apart from the order of training; unreadable ones are passed over."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from ldm.config.data import Size
from ldm.data.broken import UnreadableError
from ldm.data.images import fit
from ldm.data.shards import Packed, Shards
from ldm.data.sources import Source
from ldm.errors import UserError

CAPTIONS = 100_000  # of streamed shards; a folder or table gives all


class HeldSource:
    """A few readable samples of streamed shards, spread over them and held in memory, to be read in any order."""

    def __init__(self, shards: Shards, count: int) -> None:
        self._shards, self.class_names = shards, shards.class_names
        self._samples: list[tuple[Image.Image, list[str], Packed]] = []
        for packed in shards.spread(count):
            try:
                self._samples.append((shards.image(packed), shards.captions(packed), packed))
            except UnreadableError:
                continue
        if not self._samples:
            raise UserError("none of the images of the data can be read")

    def __len__(self) -> int:
        """Number of samples held."""
        return len(self._samples)

    def image(self, index: int) -> Image.Image:
        """The image of a sample."""
        return self._samples[index][0]

    def map(self, index: int) -> Image.Image:
        """The map of its classes."""
        return self._shards.map(self._samples[index][2])

    def shape(self, index: int) -> Size:
        """Its height and width."""
        width, height = self._samples[index][0].size
        return height, width

    def captions(self, index: int) -> list[str]:
        """Its captions."""
        return self._samples[index][1]

    def label(self, index: int) -> int:
        """Its class."""
        return self._shards.label(self._samples[index][2])

    def stamp(self, index: int) -> str:
        """Its number: these samples live as long as the process."""
        return str(index)


def some_images(
    source: Source | Shards, count: int, size: int, rank: int = 0, processes: int = 1
) -> Iterator[np.ndarray]:
    """`count` images spread evenly over the source, or this process' part of them, as bytes (size, size, 3)."""
    if isinstance(source, Shards):
        for packed in source.spread(count, rank, processes):
            try:
                yield fit(source.image(packed), size)
            except UnreadableError:
                continue
        return
    chosen = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
    for index in chosen[rank::processes]:
        try:
            yield fit(source.image(int(index)), size)
        except UnreadableError:
            continue


def first_images(source: Source | Shards, count: int, size: int) -> np.ndarray:
    """The first readable images of a source, bytes (n, size, size, 3); UserError where there is none."""
    found: list[np.ndarray] = []
    if isinstance(source, Shards):
        found = list(some_images(source, count, size))
    else:
        for index in range(len(source)):
            if len(found) == count:
                break
            try:
                found.append(fit(source.image(index), size))
            except UnreadableError:
                continue
    if not found:
        raise UserError("none of the images of the data can be read")
    return np.stack(found)


def all_captions(source: Source | Shards) -> Iterator[str]:
    """The captions of a source, or of about 100,000 samples spread over streamed shards."""
    if isinstance(source, Shards):
        for packed in source.spread(CAPTIONS):
            try:
                yield from source.captions(packed)
            except UnreadableError:
                continue
        return
    for index in range(len(source)):
        try:
            yield from source.captions(index)
        except UnreadableError:
            continue
