"""The batches of one process: of data that is read in any order, and of shards that are read as streams.

Which sample stands in which slot of which step follows from the seed alone (order.py, lanes.py), so that a run
continues where it stopped, and several processes share the work, without any state.
"""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from ldm.config.data import DataConfig, Size
from ldm.config.root import Config
from ldm.data.broken import Broken, UnreadableError, first_readable
from ldm.data.lanes import Lane, Lanes, ShardAssignment
from ldm.data.order import BucketOrder, Pick, SquareOrder, sort_into_buckets
from ldm.data.preparing import Batch, Preparation, Sample, join, make_batch
from ldm.data.progress import track
from ldm.data.shards import Packed, Shards
from ldm.data.sources import MapSource, Source
from ldm.errors import UserError


@dataclass(frozen=True)
class Share:
    """The part of each global batch that one process takes, cut into micro-batches."""

    batch_size: int  # of all processes and micro-batches together
    rank: int = 0
    processes: int = 1
    accumulation: int = 1

    @property
    def micro_size(self) -> int:
        """Samples in one forward pass of one process."""
        return self.batch_size // (self.processes * self.accumulation)

    def slots(self, micro: int) -> range:
        """Slots of the global batch that this process takes in its micro-batch number `micro`."""
        first = (micro * self.processes + self.rank) * self.micro_size
        return range(first, first + self.micro_size)


class TrainingData(Dataset[Batch]):
    """Maps (step, micro-batch) to a Batch of images that can be read in any order.

    `sizes` are the shapes that images are cut to, one for each bucket; `unreadable` tells of samples that are known
    to be broken where images are not read. `classes` says whether a class of each sample is asked for.
    """

    def __init__(
        self,
        source: Source,
        config: DataConfig,
        share: Share,
        seed: int,
        images: bool = True,
        sizes: Sequence[Size] = (),
        unreadable: Mapping[int, Broken] | None = None,
        classes: bool = False,
    ) -> None:
        self.source, self.share, self.images, self.classes = source, share, images, classes
        self.unreadable = unreadable or {}
        self.maps = source if config.map_classes is not None and isinstance(source, MapSource) else None
        if config.map_classes is not None and self.maps is None:
            raise UserError("data.map_classes: these data have no maps of classes; name images with maps beside them")
        self._prepare = Preparation(config, seed)
        if len(sizes) > 1:
            members = sort_into_buckets(shapes_of(source), sizes, share.batch_size)
            self._order: BucketOrder | SquareOrder = BucketOrder(members, share.batch_size, seed)
        else:
            self._order = SquareOrder(len(source), share.batch_size, (config.size, config.size), seed)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        step, micro = key
        slots, pick = self.share.slots(micro), self._order(step)
        made = [self._fill(pick, step, slot) for slot in slots]
        return make_batch(step, slots, [sample for sample, _ in made], [name for _, broken in made for name in broken])

    def _fill(self, pick: Pick, step: int, slot: int) -> tuple[Sample, list[Broken]]:
        def another(attempt: int) -> int:
            return int(pick.pool[self._prepare.random.choice(f"fill/{attempt}", step, slot, len(pick.pool))])

        return first_readable(pick.indices[slot], another, lambda index: self._sample(index, pick.size, step, slot))

    def _sample(self, index: int, size: Size, step: int, slot: int) -> Sample:
        if index in self.unreadable:
            raise UnreadableError(self.unreadable[index].name, self.unreadable[index].reason)
        caption = self._prepare.caption(self.source.captions(index), step, slot)
        cut = self._prepare.image(self.source.image(index), size, step, slot) if self.images else None
        drawn = None
        if self.maps is not None:
            drawn = self._prepare.map(self.maps.map(index), cut, size, step, slot, self.source.stamp(index))
        return Sample(index, caption, cut, self.source.label(index) if self.classes else None, drawn)


def shapes_of(source: Source) -> list[Size | None]:
    """Heights and widths of all images, read from their headers; None for the unreadable."""

    def shape(index: int) -> Size | None:
        try:
            return source.shape(index)
        except UnreadableError:
            return None

    return list(track(map(shape, range(len(source))), "looking up the shapes of images", len(source)))


class StreamData(IterableDataset[Batch]):
    """The micro-batches of steps `start` to `end` out of shards; each loader process makes the part of its own lanes.

    Every part has the slots of some of this process' lanes; the parts of one micro-batch come from the loader
    processes in turn.
    """

    def __init__(
        self, shards: Shards, config: DataConfig, share: Share, seed: int, start: int, end: int, classes: bool = False
    ) -> None:
        self.shards, self.share, self.size, self.classes = shards, share, (config.size, config.size), classes
        self.steps = Steps(start, end, share.accumulation)
        self._prepare = Preparation(config, seed)
        count = config.shards.lanes or _most_lanes(share.batch_size, len(shards.urls))
        if share.batch_size % count or count > len(shards.urls):
            raise UserError(
                f"data.shards.lanes {count} must divide batch_size {share.batch_size} and be no more than the "
                f"{len(shards.urls)} shards"
            )
        self.lanes = Lanes(share.batch_size, count, len(shards))
        self._deal = ShardAssignment(self.lanes, shards.counts.tolist(), config.shards.shuffle_buffer, seed)

    def own_lanes(self) -> list[int]:
        """The lanes that fill slots of this process."""
        slots = (slot for micro in range(self.share.accumulation) for slot in self.share.slots(micro))
        return sorted({self.lanes.of_slot(slot) for slot in slots})

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        mine = self.own_lanes() if info is None else self.own_lanes()[info.id :: info.num_workers]
        readers: dict[int, Lane[Packed]] = {lane: Lane(self._deal, self.shards.read) for lane in mine}
        for step, micro in self.steps:
            slots = [slot for slot in self.share.slots(micro) if self.lanes.of_slot(slot) in readers]
            made = [self._fill(readers[self.lanes.of_slot(slot)], step, slot) for slot in slots]
            broken = [name for _, names in made for name in names]
            yield make_batch(step, slots, [sample for sample, _ in made], broken)

    def _fill(self, lane: Lane[Packed], step: int, slot: int) -> tuple[Sample, list[Broken]]:
        def another(attempt: int) -> Packed:
            # Out of another shard, since where one sample is damaged its neighbours often are.
            full = self.shards.counts.nonzero()[0]
            chosen = full[self._prepare.random.choice(f"fill/{attempt}", step, slot, len(full))]
            return next(self.shards.read(int(chosen)))

        asked = lane.sample((step - 1) * self.share.batch_size + slot)
        return first_readable(asked, another, lambda packed: self._sample(packed, step, slot))

    def _sample(self, packed: Packed, step: int, slot: int) -> Sample:
        caption = self._prepare.caption(self.shards.captions(packed), step, slot)
        cut = self._prepare.image(self.shards.image(packed), self.size, step, slot)
        drawn = None
        if self._prepare.config.map_classes is not None:
            drawn = self._prepare.map(self.shards.map(packed), cut, self.size, step, slot, packed.name)
        return Sample(packed.index, caption, cut, self.shards.label(packed) if self.classes else None, drawn)


def _most_lanes(batch_size: int, shards: int) -> int:
    return max(count for count in range(1, min(batch_size, shards) + 1) if batch_size % count == 0)


class Steps(Sampler[tuple[int, int]]):
    """The (step, micro-batch) keys of one process from `start` to `end`, both included."""

    def __init__(self, start: int, end: int, accumulation: int) -> None:
        self.start, self.end, self.accumulation = start, end, accumulation

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for step in range(self.start, self.end + 1):
            for micro in range(self.accumulation):
                yield step, micro

    def __len__(self) -> int:
        return (self.end - self.start + 1) * self.accumulation


def make_loader(data: TrainingData, start: int, end: int, workers: int = 0) -> Generator[Batch, None, None]:
    """Micro-batches of steps `start` to `end`, in order, made by `workers` processes."""
    keys = Steps(start, end, data.share.accumulation)
    # batch_size None: `data` makes whole batches itself.
    return _plainly(DataLoader(data, batch_size=None, sampler=keys, num_workers=workers, worker_init_fn=leave_signals))


def stream(data: StreamData, workers: int = 0) -> Generator[Batch, None, None]:
    """Micro-batches out of shards, in order; no more loader processes are started than there are lanes."""
    workers = min(workers, len(data.own_lanes()))
    parts = _plainly(DataLoader(data, batch_size=None, num_workers=workers, worker_init_fn=leave_signals))
    yield from map(join, zip(*[parts] * max(1, workers), strict=True))


def _plainly(loader: DataLoader[Batch]) -> Generator[Batch, None, None]:
    """The loader's batches; a UserError of a loader process without the traceback that torch makes its message of."""
    batches = iter(loader)
    try:
        yield from batches
    except UserError as error:
        text = str(error).strip()
        if not text.startswith("Caught "):
            raise
        raise UserError(text.splitlines()[-1].partition(": ")[2]) from None
    finally:
        # By torch's own way, at once: loader processes leave SIGTERM alone, by which Python would end them at exit.
        if loader.num_workers:
            batches._shutdown_workers()


def training_batches(
    source: Source | Shards,
    config: Config,
    share: Share,
    start: int,
    end: int,
    images: bool = True,
    unreadable: Mapping[int, Broken] | None = None,
) -> Generator[Batch, None, None]:
    """The micro-batches of this process in optimiser steps `start` to `end`, in order.

    UserError for what shards cannot do: buckets, and training without reading images.
    """
    data, seed = config.data, config.training.seed
    if isinstance(source, Shards):
        if data.buckets is not None:
            raise UserError("data.buckets needs the shapes of all images beforehand, which streamed shards do not tell")
        return stream(StreamData(source, data, share, seed, start, end, config.tells_classes), data.workers)
    sizes, classes = config.image_sizes, config.tells_classes
    made = TrainingData(source, data, share, seed, images, sizes, unreadable, classes)
    return make_loader(made, start, end, data.workers)


def leave_signals(worker: int) -> None:
    """Let a loader process outlive Ctrl-C and a cluster's SIGTERM, which all processes get: training saves with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
