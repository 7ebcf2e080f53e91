"""Some images and captions of a source, independent of the order of training; unreadable ones are skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image

from ldm.data.broken import UnreadableError
from ldm.data.images import fit
from ldm.data.sources import IndexedSource, Source, open_source
from ldm.data.validation import Validation, spread_over
from ldm.errors import UserError

CAPTIONS = 100_000  # of streamed shards; other sources yield all

if TYPE_CHECKING:
    from ldm.config.data import DataConfig

T = TypeVar("T")


class HeldSource(IndexedSource):
    """A few readable samples of a stream in memory, to be read in any order."""

    def __init__(self, source: Source, count: int, limit: int | None = None) -> None:
        """Read `source.spread(count)`, evenly thinned to about `limit` samples."""
        self._source, self.has_maps, self.name = source, source.has_maps, source.name

        def read(item: Any) -> tuple[Image.Image | np.ndarray, list[str], Any]:
            return source.image(item), source.captions(item), item

        self._samples = list(_readable(read, islice(source.spread(count), 0, None, max(1, count // (limit or count)))))
        if not self._samples:
            raise _nothing_readable()

    def __len__(self) -> int:
        return len(self._samples)

    def image(self, index: int) -> Image.Image | np.ndarray:
        return self._samples[index][0]

    def map(self, index: int) -> Image.Image | np.ndarray:
        return self._source.map(self._samples[index][2])

    def captions(self, index: int) -> list[str]:
        return self._samples[index][1]

    def label(self, index: int) -> int:
        return self._source.label(self._samples[index][2])

    def name_of(self, index: int) -> str:
        return self._source.name_of(self._samples[index][2])

    @property
    def class_names(self) -> Any:
        return self._source.class_names


def some_images(source: Source, count: int, size: int, rank: int = 0, processes: int = 1) -> Iterator[np.ndarray]:
    """Yield this process' part of `count` images spread evenly over the source, as bytes (size, size, 3)."""
    return _readable(lambda item: fit(source.image(item), size), source.spread(count, rank, processes))


def validation_of(source: Source, config: DataConfig, count: int) -> Validation | None:
    """Return the images that validate a training on `source`, or None if validation is off.

    Args:
        source: The data of the training.
        config: `validation` names other data, or is a share of `source`, 0 for none; None is the default.
        count: How many images of a stream to read.
    """
    other: Source | None
    if isinstance(config.validation, str):
        other = open_source(config.validation, config)
    else:
        other = source.other_scenes(config) if config.validation is None else None
    if other is not None:
        apart = other.preview(count)
        return Validation(apart, np.arange(len(apart)))
    return source.validation(config, count)


def shown_images(source: Source, config: DataConfig, count: int) -> np.ndarray:
    """Read `count` images that are spread over the held-out ones, or over all, as bytes (n, size, size, 3).

    Raises:
        UserError: if none is readable.
    """
    validation = validation_of(source, config, count)
    shown: Source = source if validation is None else validation.source
    items = source.spread(count) if validation is None else iter(spread_over(validation.indices, count))
    found = list(islice(_readable(lambda item: fit(shown.image(item), config.size), items), count))
    if not found:
        raise _nothing_readable()
    return np.stack(found)


def all_captions(source: Source) -> Iterator[str]:
    """Yield the captions of all samples, or of about 100,000 spread over streamed shards."""
    for captions in _readable(source.captions, source.scan(CAPTIONS)):
        yield from captions


def _readable(read: Callable[[Any], T], items: Iterable[Any]) -> Iterator[T]:
    for item in items:
        try:
            yield read(item)
        except UnreadableError:
            continue


def _nothing_readable() -> UserError:
    return UserError("none of the images of the data can be read: check their format")
