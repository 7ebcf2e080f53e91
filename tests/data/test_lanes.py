"""The order of streams and of indexed data: each sample once an epoch, for any number of processes."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from ldm.data.lanes import Lane, Lanes, ShardAssignment
from ldm.data.loader import BatchShare
from ldm.data.order import Order
from ldm.data.streaming import most_lanes

PROCESSES, WORKERS = 512, 4
COUNTS = {
    "even": [60] * 1024,
    "uneven": np.random.default_rng(0).integers(0, 200, 777).tolist(),
    "one giant": [40_000] + [3] * 2000,
    "fewer shards than processes": [1500, 900, 31, 7000],
}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("batch_size", [2048, 6144])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
def test_512_processes_of_4_workers_read_each_streamed_sample_once_an_epoch(
    counts: list[int], batch_size: int, accumulation: int
) -> None:
    lanes = Lanes(batch_size, most_lanes(batch_size, len(counts)), sum(counts))
    deal = ShardAssignment(lanes, counts, buffer=8192, seed=1)
    starts = np.cumsum(counts) - counts
    takers: dict[int, set[tuple[int, int]]] = {}
    slots: Counter[int] = Counter()
    for rank in range(PROCESSES):
        share = BatchShare(batch_size, rank, PROCESSES, accumulation)
        mine = [slot for micro in range(accumulation) for slot in share.slots(micro)]
        slots.update(mine)
        own = sorted({lanes.of_slot(slot) for slot in mine})
        for worker in range(min(WORKERS, len(own))):
            for lane in own[worker::WORKERS]:
                takers.setdefault(lane, set()).add((rank, worker))
    assert set(slots.values()) == {1}
    assert len(slots) == batch_size
    assert sorted(takers) == list(range(lanes.count))
    if lanes.count % (PROCESSES * accumulation) == 0:
        assert all(len(owners) == 1 for owners in takers.values())  # then no shard is read by two processes
    for epoch in (0, 3):
        given = []
        for lane in takers:
            inputs = [starts[piece.shard] + np.array(piece.positions) for piece in deal.pieces(epoch, lane)]
            order = deal.shuffled(epoch, lane)
            assert len(order) == sum(map(len, inputs))
            given.append(np.concatenate([*inputs, np.zeros(0, dtype=int)])[order])
        assert np.array_equal(np.sort(np.concatenate(given)), np.arange(sum(counts)))


def test_512_processes_of_4_workers_read_each_indexed_sample_once_an_epoch() -> None:
    for count, batch_size in ((100_003, 2048), (20_480, 1024)):
        order, steps = Order(count, seed=0), -(-count // batch_size)
        seen = np.zeros(2 * count, dtype=int)
        for rank in range(PROCESSES):
            share = BatchShare(batch_size, rank, PROCESSES)
            keys = [(step, 0) for step in range(1, steps + 1)]
            for worker in range(WORKERS):  # a loader deals keys to its workers in turn
                for step, micro in keys[worker::WORKERS]:
                    for slot in share.slots(micro):
                        number = (step - 1) * batch_size + slot
                        seen[order(number) + count * (number // count)] += 1
        assert (seen[:count] == 1).all()
        assert seen[count:].sum() == steps * batch_size - count


def test_places_in_lanes_equal_counted_ones() -> None:
    lanes = Lanes(batch_size=12, count=4, samples=29)
    taken: Counter[tuple[int, int]] = Counter()
    for number in range(29 * 5):
        lane, epoch, position = lanes.place(number)
        assert lane == number % 12 // 3
        assert epoch == number // 29
        assert position == taken[lane, epoch]
        taken[lane, epoch] += 1
    assert all(len(lanes.part(epoch, lane)) == taken[lane, epoch] for epoch in range(5) for lane in range(4))
    for epoch in range(5):
        parts = [lanes.part(epoch, lane) for lane in range(4)]
        assert [index for part in parts for index in part] == list(range(29))


class Reading:
    """Shards of numbered samples, and a record of those that were opened."""

    def __init__(self, counts: list[int]) -> None:
        self.counts, self.opened = counts, []
        self.starts = np.cumsum(counts) - counts

    def __call__(self, shard: int) -> Iterator[int]:
        self.opened.append(shard)
        yield from range(self.starts[shard], self.starts[shard] + self.counts[shard])


def numbers_of(lanes: Lanes, lane: int, count: int) -> list[int]:
    return [number for number in range(count) if lanes.of_slot(number % lanes.batch_size) == lane]


UNEVEN = [7, 1, 12, 0, 30, 5, 9]


def test_every_epoch_of_a_stream_has_each_sample_once_in_another_order() -> None:
    lanes = Lanes(8, 4, sum(UNEVEN))
    deal = ShardAssignment(lanes, UNEVEN, buffer=20, seed=0)
    readers = [Lane(deal, Reading(UNEVEN)) for _ in range(4)]
    given = [readers[lanes.of_slot(number % 8)].sample(number) for number in range(4 * 64)]
    epochs = [given[at : at + 64] for at in range(0, 256, 64)]
    assert all(sorted(epoch) == list(range(64)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_stream_started_anywhere_continues_alike_and_opens_only_needed_shards() -> None:
    counts = [10] * 20
    lanes = Lanes(8, 2, 200)
    deal = ShardAssignment(lanes, counts, buffer=30, seed=5)
    numbers = numbers_of(lanes, 1, 500)
    whole = Lane(deal, Reading(counts))
    expected = [whole.sample(number) for number in numbers]
    for start in (1, 37, 60, 99, 100, 101, 180):
        reading = Reading(counts)
        lane = Lane(deal, reading)
        rest = [lane.sample(number) for number in numbers[start:]]
        assert rest == expected[start:]
        if start == 60:  # shards all of whose samples are among the first 60 stay closed
            given, pieces = set(deal.shuffled(0, 1)[:60]), deal.pieces(0, 1)
            places = np.split(np.arange(100), np.cumsum([len(piece.positions) for piece in pieces])[:-1])
            needed = [piece.shard for piece, p in zip(pieces, places, strict=True) if not given.issuperset(p)]
            assert reading.opened[: len(needed)] == needed
            assert len(needed) < len(pieces)


def test_samples_of_other_slots_of_a_lane_are_skipped() -> None:
    lanes = Lanes(8, 2, 64)
    deal = ShardAssignment(lanes, UNEVEN, buffer=10, seed=2)
    numbers = numbers_of(lanes, 0, 300)
    every, half = Lane(deal, Reading(UNEVEN)), Lane(deal, Reading(UNEVEN))
    expected = [every.sample(number) for number in numbers]
    assert [half.sample(number) for number in numbers[1::2]] == expected[1::2]


def test_the_buffer_shuffles_and_never_reads_beyond_its_size() -> None:
    deal = ShardAssignment(Lanes(1, 1, 1000), [1000], buffer=50, seed=0)
    order = deal.shuffled(0, 0)
    assert sorted(order) == list(range(1000))
    assert all(position < left + 50 for left, position in enumerate(order))
    assert np.mean([abs(position - left) for left, position in enumerate(order)]) > 20
    assert order != deal.shuffled(1, 0)
