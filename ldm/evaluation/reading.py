"""Images of a data set, read once for all that look at them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ldm.data.images import fit
from ldm.data.progress import track
from ldm.data.sources import Source
from ldm.evaluation.features import Features
from ldm.evaluation.neighbours import as_vectors
from ldm.processes import ProcessShare


class Reader(Protocol):
    """What looks at this process' share of the first `count` images, batch by batch."""

    count: int

    def see(self, images: np.ndarray) -> None:
        """Look at the next images, bytes (n, H, W, 3)."""


def read_through(source: Source, size: int, readers: Sequence[Reader], share: ProcessShare, batch_size: int) -> None:
    """Show each reader its images, cut to squares of `size` pixels; each is decoded once."""
    numbers = share.of(max((reader.count for reader in readers), default=0))
    batches = [numbers[first : first + batch_size] for first in range(0, len(numbers), batch_size)]
    tracked = track(batches, "reading batches of the data", len(batches)) if share.is_first and batches else batches
    for batch in tracked:
        needed = [sum(number < reader.count for number in batch) for reader in readers]
        images = np.stack([fit(source.image(number), size) for number in batch[: max(needed)]])
        for reader, count in zip(readers, needed, strict=True):
            if count:
                reader.see(images[:count])


class FeatureReader:
    """Features of images."""

    def __init__(self, count: int, features: Features) -> None:
        self.count, self.features = count, features
        self._found: list[Tensor] = []

    def see(self, images: np.ndarray) -> None:
        """Bytes (n, H, W, 3)."""
        self._found.append(self.features(as_tensor(images)).cpu())

    def gathered(self, share: ProcessShare) -> Tensor:
        """Of all processes' images in the order of their numbers, (count, D)."""
        return gathered(self._found, share)


class PixelReader:
    """Small versions of images as vectors, in which near ones are looked for."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._found: list[Tensor] = []

    def see(self, images: np.ndarray) -> None:
        """Bytes (n, H, W, 3)."""
        self._found.append(as_vectors(images))

    def gathered(self, share: ProcessShare) -> Tensor:
        """Of all processes' images in the order of their numbers, (count, D)."""
        return gathered(self._found, share)


def gathered(found: Sequence[Tensor], share: ProcessShare) -> Tensor:
    """Rows of all processes in the order of their numbers, of this one's batches of rows."""
    rows = [row for batch in found for row in batch]
    return torch.stack(share.gather(rows))


def as_tensor(images: np.ndarray) -> Tensor:
    """Bytes (n, H, W, 3) to bytes (n, 3, H, W)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def in_batches(images: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Single images (H, W, 3) as bytes (n, H, W, 3), `size` at a time."""
    batch: list[np.ndarray] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)
