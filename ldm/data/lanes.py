"""The order of streamed samples: who reads which shards, and which sample stands in which slot.

A global batch of B slots is filled by L *lanes*, each a stream of its own: lane l fills the B / L slots from l B / L
on. Neighbouring slots share a lane, as neighbouring slots belong to one process, so that a shard is read by one
process alone wherever the number of lanes is a multiple of that of processes (times gradient accumulation).

Samples are numbered as everywhere: number n stands in slot n mod B of step n / B + 1, and epoch e holds the numbers
from e N to (e + 1) N, of N samples. That says how many samples of an epoch each lane must give. The epoch's shards, in
a random order, are laid end to end and dealt to the lanes in pieces of just these lengths: no lane waits for another,
none is dropped or repeated, however uneven the shards. All this is arithmetic on the numbers of samples in the shards;
nothing depends on how many processes or loader processes there are, nor on when a run was stopped.
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
        """The lane that fills a slot."""
        return slot // self.width

    def part(self, epoch: int, lane: int) -> range:
        """Where a lane's samples lie in the epoch's shards laid end to end."""
        first, last = epoch * self.samples, (epoch + 1) * self.samples
        start, stop = (self._given(last, lanes) - self._given(first, lanes) for lanes in (lane, lane + 1))
        return range(start, stop)

    def place(self, number: int) -> tuple[int, int, int]:
        """Lane, epoch and position in the lane's part of that epoch, of sample `number` of a run."""
        lane, epoch = self.of_slot(number % self.batch_size), number // self.samples
        done, begun = (self._given(at, lane + 1) - self._given(at, lane) for at in (number, epoch * self.samples))
        return lane, epoch, done - begun

    def _given(self, number: int, lanes: int) -> int:
        """How many of a run's first `number` samples the first `lanes` lanes give."""
        steps, slots = divmod(number, self.batch_size)
        return steps * lanes * self.width + min(slots, lanes * self.width)


@dataclass(frozen=True)
class Piece:
    """A part of one shard."""

    shard: int
    positions: range


class ShardAssignment:
    """Epoch and lane -> pieces of shards and the order in which a shuffle buffer gives their samples."""

    def __init__(self, lanes: Lanes, counts: Sequence[int], buffer: int, seed: int) -> None:
        self.lanes, self.counts, self._random = lanes, np.asarray(counts), StepRandom(seed)
        self.buffer = max(1, buffer // lanes.count)  # samples that one lane holds

    def pieces(self, epoch: int, lane: int) -> list[Piece]:
        """What a lane reads in an epoch, in that order."""
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
        """Positions in the lane's part in the order in which they leave the shuffle buffer.

        The buffer holds the next `buffer` samples that have not left; each draw takes one of them.
        """
        count = len(self.lanes.part(epoch, lane))
        draws = torch.rand(count, dtype=torch.float64, generator=self._random.generator("buffer", epoch, lane))
        held, order = list(range(min(self.buffer, count))), []
        for left, draw in enumerate(draws.tolist()):
            chosen = int(draw * len(held))
            order.append(held[chosen])
            following = left + self.buffer
            if following < count:
                held[chosen] = following
            else:
                held[chosen] = held[-1]
                held.pop()
        return order


class Lane(Generic[Item]):
    """The samples of one lane, asked for in ascending order of their numbers; `read(shard)` gives those of a shard."""

    def __init__(self, deal: ShardAssignment, read: Callable[[int], Iterator[Item]]) -> None:
        self.deal, self.read = deal, read
        self._epoch: _Epoch[Item] | None = None

    def sample(self, number: int) -> Item:
        """Sample `number` of the run, which this lane must give; those of the lane before it are passed over."""
        lane, epoch, position = self.deal.lanes.place(number)
        if self._epoch is None or self._epoch.number != epoch:
            self._epoch = _Epoch(self.deal, self.read, epoch, lane, position)
        return self._epoch.sample(position)


class _Epoch(Generic[Item]):
    """One lane in one epoch, from a position on; shards of which nothing is left to give are not opened."""

    def __init__(
        self, deal: ShardAssignment, read: Callable[[int], Iterator[Item]], number: int, lane: int, position: int
    ) -> None:
        self.number = number
        self._order, self._buffer, self._position = deal.shuffled(number, lane), deal.buffer, position
        self._given = set(self._order[:position])
        self._inputs = enumerate(self._read(deal.pieces(number, lane), read))
        self._held: dict[int, Item] = {}  # by position in the lane's part

    def sample(self, position: int) -> Item:
        """The sample at `position`, which has not been given; no more is read than it takes."""
        while True:
            wanted = self._order[self._position]
            while wanted not in self._held:
                place, item = next(self._inputs)
                if item is not None:
                    self._held[place] = item
            item = self._held.pop(wanted)
            self._position += 1
            if self._position > position:
                return item

    def _read(self, pieces: Sequence[Piece], read: Callable[[int], Iterator[Item]]) -> Iterator[Item | None]:
        """The samples of the pieces, in that order; None for those already given."""
        first = 0
        for piece in pieces:
            places = range(first, first + len(piece.positions))
            first = places.stop
            if self._given.issuperset(places):
                yield from (None for _ in places)
                continue
            samples = islice(read(piece.shard), piece.positions.start, piece.positions.stop)
            for place, item in zip(places, samples, strict=True):
                yield None if place in self._given else item
