"""The batches of one process, of shards that are read as streams."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ldm.data.lanes import Lane, Lanes, ShardAssignment
from ldm.data.loader import BatchShare, Steps, ignore_signals, run
from ldm.data.preparing import Batch, Preparation, PreparedSample, join, make_batch
from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.config.data import DataConfig
    from ldm.data.shards import Packed, Shards


class StreamData(IterableDataset[Batch]):
    """The micro-batches of steps `start` to `end`, in parts: each loader process fills the slots of some lanes.

    The parts of one micro-batch come from the loader processes in turn.
    """

    def __init__(
        self,
        shards: Shards,
        config: DataConfig,
        share: BatchShare,
        seed: int,
        start: int,
        end: int,
        classes: bool = False,
    ) -> None:
        self.shards, self.share, self.size = shards, share, (config.size, config.size)
        self.steps, self._prepare = (
            Steps(start, end, share.accumulation),
            Preparation(shards, config, seed, True, classes),
        )
        count = config.shards.lanes or most_lanes(share.batch_size, len(shards.urls))
        if share.batch_size % count or count > len(shards.urls):
            raise UserError(
                f"data.shards.lanes {count} must divide batch_size {share.batch_size} and be no more than the "
                f"{len(shards.urls)} shards"
            )
        self._held = set(shards.held_out(config).tolist())
        counts = shards.counts - np.bincount(shards.shards_of(sorted(self._held)), minlength=len(shards.urls))
        self.lanes = Lanes(share.batch_size, count, int(counts.sum()))
        self._assignment = ShardAssignment(self.lanes, counts.tolist(), config.shards.shuffle_buffer, seed)
        self._not_empty = counts.nonzero()[0]

    def _read(self, shard: int) -> Iterator[Packed]:
        """Yield the samples of a shard that are not held out."""
        return (packed for packed in self.shards.read_shard(shard) if packed.index not in self._held)

    def own_lanes(self) -> list[int]:
        """Return the lanes that fill slots of this process."""
        slots = (slot for micro in range(self.share.accumulation) for slot in self.share.slots(micro))
        return sorted({self.lanes.of_slot(slot) for slot in slots})

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        own = self.own_lanes() if info is None else self.own_lanes()[info.id :: info.num_workers]
        lanes: dict[int, Lane[Packed]] = {lane: Lane(self._assignment, self._read) for lane in own}
        for step, micro in self.steps:
            slots = [slot for slot in self.share.slots(micro) if self.lanes.of_slot(slot) in lanes]
            yield make_batch(step, slots, [self._fill(lanes[self.lanes.of_slot(slot)], step, slot) for slot in slots])

    def _fill(self, lane: Lane[Packed], step: int, slot: int) -> PreparedSample:
        def replacement(row: int) -> Packed:
            # From another shard: where one sample is damaged, its neighbours often are.
            return next(self._read(int(self._not_empty[row])))

        item = lane.sample((step - 1) * self.share.batch_size + slot)
        return self._prepare.fill(item, len(self._not_empty), replacement, self.size, step, slot)


def most_lanes(batch_size: int, shards: int) -> int:
    """Return the largest number of lanes that suits a batch and the shards."""
    return max(count for count in range(1, min(batch_size, shards) + 1) if batch_size % count == 0)


def stream(data: StreamData, workers: int = 0) -> Generator[Batch, None, None]:
    """Yield micro-batches in order, made by at most as many loader processes as there are lanes."""
    workers = min(workers, len(data.own_lanes()))
    parts = run(DataLoader(data, batch_size=None, num_workers=workers, worker_init_fn=ignore_signals))
    yield from map(join, zip(*[parts] * max(1, workers), strict=True))
