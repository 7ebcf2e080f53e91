"""Read the images of a data set once for all measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ldm.data.images import fit
from ldm.data.progress import track
from ldm.data.sources import Source
from ldm.processes import ProcessShare

V = TypeVar("V")


class Reader(Protocol):
    """Receives this process' share of the first `count` images, in batches."""

    count: int

    def see(self, images: np.ndarray) -> None:
        """Receive the next images, bytes (n, H, W, 3)."""


class Collector(Generic[V]):
    """A reader that keeps a value per image, such as its features."""

    def __init__(self, count: int, measure: Callable[[np.ndarray], Iterable[V]]) -> None:
        """Take `measure`, which returns a value for each of the images, bytes (n, H, W, 3)."""
        self.count, self._measure = count, measure
        self._values: list[V] = []

    def see(self, images: np.ndarray) -> None:
        """Measure the next images, up to `count` in all."""
        self._values += self._measure(images[: self.count - len(self._values)])

    def gathered(self, share: ProcessShare) -> list[V]:
        """Return the values of all processes in the order of the images."""
        return share.gather(self._values)[: self.count]


class FeatureReader(Collector[Tensor]):
    """A reader that keeps the features of images."""

    def __init__(self, count: int, features: Callable[[Tensor], Tensor]) -> None:
        """Take `features`, which maps bytes (n, 3, H, W) to features (n, D)."""
        super().__init__(count, lambda images: features(as_tensor(images)).cpu())

    def stacked(self, share: ProcessShare) -> Tensor:
        """Return the features of all processes' images in order, (count, D)."""
        return torch.stack(self.gathered(share))


def read_through(source: Source, size: int, readers: Sequence[Reader], share: ProcessShare, batch_size: int) -> None:
    """Decode each image once, cut it to a square of `size` pixels, and pass it to the readers that need it."""
    numbers = share.of(max((reader.count for reader in readers), default=0))
    batches = [numbers[first : first + batch_size] for first in range(0, len(numbers), batch_size)]
    tracked = track(batches, "reading batches of the data", len(batches)) if share.is_first and batches else batches
    for batch in tracked:
        needed = [sum(number < reader.count for number in batch) for reader in readers]
        images = np.stack([fit(source.image(number), size) for number in batch[: max(needed)]])
        for reader, count in zip(readers, needed, strict=True):
            if count:
                reader.see(images[:count])


def as_tensor(images: np.ndarray) -> Tensor:
    """Convert bytes (n, H, W, 3) to bytes (n, 3, H, W)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def in_batches(images: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Stack single images (H, W, 3) to batches (n, H, W, 3) of at most `size`."""
    while batch := list(islice(images, size)):
        yield np.stack(batch)
