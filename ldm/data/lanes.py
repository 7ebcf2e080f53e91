"""The order of streamed samples: which process reads which shards, and which sample fills which slot.

L *lanes*, each a separate stream, fill a global batch of B slots: lane l fills the B / L slots from l B / L on.
Neighbouring slots share a lane, as they belong to one process. So only one process reads a shard, where the number of
lanes is a multiple of the number of processes (times gradient accumulation).

Sample n of a run is in slot n mod B of step n / B + 1, and epoch e has the samples from e N to (e + 1) N, of N. This
determines how many samples of an epoch each lane yields. The shards of an epoch, concatenated in a random order, are
divided into consecutive parts of exactly these lengths: no lane waits for another, and no sample is dropped or
repeated, however uneven the shards. All of it is arithmetic on the numbers of samples in the shards; the number of
processes and loader processes and the step at which a run was stopped have no influence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

import numpy as np
import torch

from ldm.data.random import StepRandom

Item = TypeVar("Item")


@dataclass(frozen=True)
class Lanes:
    """The lanes of a global batch, and their parts of each epoch."""

    batch_size: int
    count: int  # divides batch_size
    samples: int  # in an epoch

    @property
    def width(self) -> int:
        """Slots that one lane fills."""
        return self.batch_size // self.count

    def of_slot(self, slot: int) -> int:
        """Return the lane that fills a slot."""
        return slot // self.width

    def part(self, epoch: int, lane: int) -> range:
        """Range of a lane's samples in the concatenated shards of an epoch."""
        first, last = epoch * self.samples, (epoch + 1) * self.samples
        start, stop = (self._yielded(last, lanes) - self._yielded(first, lanes) for lanes in (lane, lane + 1))
        return range(start, stop)

    def place(self, number: int) -> tuple[int, int, int]:
        """Lane, epoch and position in the lane's part of that epoch, for sample `number` of a run."""
        lane, epoch = self.of_slot(number % self.batch_size), number // self.samples
        done, begun = (self._yielded(at, lane + 1) - self._yielded(at, lane) for at in (number, epoch * self.samples))
        return lane, epoch, done - begun

    def _yielded(self, number: int, lanes: int) -> int:
        """Return how many of a run's first `number` samples come from the first `lanes` lanes."""
        steps, slots = divmod(number, self.batch_size)
        return steps * lanes * self.width + min(slots, lanes * self.width)


@dataclass(frozen=True)
class Piece:
    """A part of one shard."""

    shard: int
    positions: range


class ShardAssignment:
    """Maps epoch and lane to pieces of shards and the order in which a shuffle buffer yields their samples."""

    def __init__(self, lanes: Lanes, counts: Sequence[int], buffer: int, seed: int) -> None:
        self.lanes, self.counts, self._random = lanes, np.asarray(counts), StepRandom(seed)
        self.buffer = max(1, buffer // lanes.count)  # samples in the buffer of one lane

    def pieces(self, epoch: int, lane: int) -> list[Piece]:
        """Return pieces that a lane reads in an epoch, in this order."""
        shuffled = torch.randperm(len(self.counts), generator=self._random.generator("shards", epoch)).numpy()
        ends = self.counts[shuffled].cumsum()
        part, pieces = self.lanes.part(epoch, lane), []
        for place in range(int(np.searchsorted(ends, part.start, side="right")), len(ends)):
            begin = int(ends[place] - self.counts[shuffled[place]])
            positions = range(max(part.start, begin) - begin, min(part.stop, int(ends[place])) - begin)
            if begin >= part.stop:
                break
            if positions:
                pieces.append(Piece(int(shuffled[place]), positions))
        return pieces

    def shuffled(self, epoch: int, lane: int) -> list[int]:
        """Return positions in the lane's part, in the order in which they leave the shuffle buffer.

        The buffer holds the next `buffer` samples that have not left; a random one of them leaves each time.
        """
        count = len(self.lanes.part(epoch, lane))
        chances = torch.rand(count, dtype=torch.float64, generator=self._random.generator("buffer", epoch, lane))
        held, order = list(range(min(self.buffer, count))), []
        for left, chance in enumerate(chances.tolist()):
            chosen = int(chance * len(held))
            order.append(held[chosen])
            following = left + self.buffer
            if following < count:
                held[chosen] = following
            else:
                held[chosen] = held[-1]
                held.pop()
        return order


class Lane(Generic[Item]):
    """The samples of one lane, read in ascending order of their numbers; `read(shard)` yields a shard's samples.

    Where reading starts within an epoch, shards whose samples have all been taken before are not opened.
    """

    def __init__(self, assignment: ShardAssignment, read: Callable[[int], Iterator[Item]]) -> None:
        self.assignment, self.read = assignment, read
        self._epoch, self._position = -1, 0
        self._order: list[int] = []
        self._inputs: Iterator[tuple[int, Item]] = iter(())
        self._buffer: dict[int, Item] = {}  # samples by position in the lane's part

    def sample(self, number: int) -> Item:
        """Return sample `number` of the run, which is this lane's; earlier ones are skipped."""
        lane, epoch, position = self.assignment.lanes.place(number)
        if epoch != self._epoch:
            self._epoch, self._position, self._buffer = epoch, position, {}
            self._order = self.assignment.shuffled(epoch, lane)
            self._inputs = self._read(self.assignment.pieces(epoch, lane), set(self._order[:position]))
        while True:
            wanted = self._order[self._position]
            while wanted not in self._buffer:
                place, item = next(self._inputs)
                self._buffer[place] = item
            item = self._buffer.pop(wanted)
            self._position += 1
            if self._position > position:
                return item

    def _read(self, pieces: Sequence[Piece], taken: set[int]) -> Iterator[tuple[int, Item]]:
        """Yield the samples of the pieces that are not `taken`, with their positions."""
        first = 0
        for piece in pieces:
            places = range(first, first + len(piece.positions))
            first = places.stop
            if not taken.issuperset(places):
                samples = islice(self.read(piece.shard), piece.positions.start, piece.positions.stop)
                yield from (pair for pair in zip(places, samples, strict=True) if pair[0] not in taken)
