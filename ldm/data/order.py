"""The images of each step, as a pure function of the seed, for data that can be read in any order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from ldm.data.random import StepRandom

if TYPE_CHECKING:
    from ldm.config.data import Size


@dataclass(frozen=True)
class BatchIndices:
    """The images of one global batch."""

    size: Size  # of all crops
    indices: Sequence[int]  # one for each slot
    pool: Sequence[int] | np.ndarray  # replacements of unreadable ones


class Order:
    """Maps sample number n of a run to the index of an image: each epoch is another permutation."""

    def __init__(self, count: int, seed: int, bucket: int = 0) -> None:
        self.count, self.bucket = count, bucket
        self._random = StepRandom(seed)
        self._epoch = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> np.ndarray:
        return torch.randperm(self.count, generator=self._random.generator("order", epoch, self.bucket)).numpy()

    def __call__(self, number: int) -> int:
        """Index of the image of sample `number`."""
        epoch, position = divmod(number, self.count)
        return int(self._epoch(epoch)[position])


class SquareOrder:
    """Global batches of squares: a batch may contain the end of one epoch and the beginning of the next."""

    def __init__(self, members: np.ndarray, batch_size: int, size: Size, seed: int) -> None:
        self.members, self.batch_size, self.size = members, batch_size, size
        self._order = Order(len(members), seed)

    def __call__(self, step: int) -> BatchIndices:
        """Return the batch of optimiser step `step`, counted from 1."""
        first = (step - 1) * self.batch_size  # the first sample of a run is number 0
        rows = [self._order(number) for number in range(first, first + self.batch_size)]
        return BatchIndices(self.size, self.members[rows].tolist(), self.members)


class BucketOrder:
    """Global batches of one bucket each.

    Every bucket is an endless sequence of permutations of its own images, divided into batches. Images of an epoch
    that do not fill a batch begin the bucket's first batch of the next epoch. So no image repeats before all others
    of its bucket, and none is dropped. Epoch e has floor((e + 1) n / B) - floor(e n / B) batches of a bucket of n
    images; the batches of all buckets are in a random order.
    """

    def __init__(self, members: Mapping[Size, np.ndarray], batch_size: int, seed: int) -> None:
        self.members = dict(sorted(members.items()))
        self.batch_size, self.seed = batch_size, seed
        self._buckets = list(self.members.items())
        self._counts = [len(indices) for _, indices in self._buckets]
        self._orders = [Order(count, seed, 1 + bucket) for bucket, count in enumerate(self._counts)]
        self._plan = lru_cache(maxsize=2)(self._permutation)

    def steps_before(self, epoch: int) -> int:
        """Return steps of all epochs before `epoch`."""
        return sum(self._batches_before(bucket, epoch) for bucket in range(len(self._counts)))

    def __call__(self, step: int) -> BatchIndices:
        """Return the batch of optimiser step `step`, counted from 1."""
        epoch = (step - 1) * self.batch_size // sum(self._counts)  # or a later one: batches are rounded down
        while self.steps_before(epoch + 1) < step:
            epoch += 1
        bucket, batch = self._plan(epoch)[step - 1 - self.steps_before(epoch)]
        size, indices = self._buckets[bucket]
        first = batch * self.batch_size
        numbers = range(first, first + self.batch_size)
        return BatchIndices(size, [int(indices[self._orders[bucket](number)]) for number in numbers], indices)

    def _batches_before(self, bucket: int, epoch: int) -> int:
        return epoch * self._counts[bucket] // self.batch_size

    def _permutation(self, epoch: int) -> list[tuple[int, int]]:
        """Bucket and number of each batch of an epoch."""
        batches = [
            (bucket, batch)
            for bucket in range(len(self._counts))
            for batch in range(self._batches_before(bucket, epoch), self._batches_before(bucket, epoch + 1))
        ]
        shuffled = torch.randperm(len(batches), generator=StepRandom(self.seed).generator("buckets", epoch))
        return [batches[number] for number in shuffled.tolist()]


def sort_into_buckets(shapes: Sequence[Size | None], sizes: Sequence[Size], batch_size: int) -> dict[Size, np.ndarray]:
    """Return the indices of the images in each bucket: the nearest aspect ratio by its logarithm.

    The images of a bucket that would not fill one batch go to the nearest remaining bucket, so that no batch contains
    an image twice. Images of unknown shape go to the largest bucket.
    """
    known = np.array([index for index, shape in enumerate(shapes) if shape is not None], dtype=int)
    aspects = np.log([shape[1] / shape[0] for shape in shapes if shape is not None])
    left = list(sizes)
    while True:
        buckets = np.log([width / height for height, width in left])
        nearest = np.abs(aspects[:, None] - buckets).argmin(axis=1) if len(known) else np.zeros(0, dtype=int)
        counts = np.bincount(nearest, minlength=len(left))
        least = int(counts.argmin())
        if counts[least] >= batch_size or len(left) == 1:
            break
        del left[least]
    fullest = int(counts.argmax())
    unknown = [index for index, shape in enumerate(shapes) if shape is None]
    members = {size: known[nearest == bucket] for bucket, size in enumerate(left)}
    members[left[fullest]] = np.sort(np.concatenate([members[left[fullest]], np.array(unknown, dtype=int)]))
    return members
