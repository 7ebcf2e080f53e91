"""The batches of one process, of data that can be read in any order.

Which sample fills which slot of which step follows from the seed alone, so that a run continues where it stopped, and
several processes share the work, without any state.
"""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from ldm.data.broken import Broken, UnreadableError
from ldm.data.order import BucketOrder, SquareOrder, sort_into_buckets
from ldm.data.preparing import Batch, Preparation, make_batch
from ldm.data.progress import track
from ldm.errors import UserError
from ldm.processes import STOP_SIGNALS

if TYPE_CHECKING:
    from ldm.config.data import DataConfig, Size
    from ldm.data.sources import IndexedSource


@dataclass(frozen=True)
class BatchShare:
    """The part of each global batch that one process loads, divided into micro-batches."""

    batch_size: int  # of all processes and micro-batches together
    rank: int = 0
    processes: int = 1
    accumulation: int = 1

    @property
    def micro_size(self) -> int:
        """The number of samples in one forward pass of one process."""
        return self.batch_size // (self.processes * self.accumulation)

    def slots(self, micro: int) -> range:
        """Return slots of the global batch in this process' micro-batch number `micro`."""
        first = (micro * self.processes + self.rank) * self.micro_size
        return range(first, first + self.micro_size)


class TrainingData(Dataset[Batch]):
    """Maps (step, micro-batch) to a Batch.

    Args:
        images: whether to read images.
        sizes: shapes that images are cropped to, one for each bucket.
        unreadable: samples known to be broken where images are not read.
        classes: whether to read the class of each sample.
        only: indices of the images to use; None: all.
        without: indices of images to leave out.
    """

    def __init__(
        self,
        source: IndexedSource,
        config: DataConfig,
        share: BatchShare,
        seed: int,
        images: bool = True,
        sizes: Sequence[Size] = (),
        unreadable: Mapping[int, Broken] | None = None,
        classes: bool = False,
        only: Sequence[int] | np.ndarray | None = None,
        without: Sequence[int] | np.ndarray = (),
    ) -> None:
        self.share, self._prepare = share, Preparation(source, config, seed, images, classes, unreadable)
        used = np.setdiff1d(np.arange(len(source)) if only is None else only, np.asarray(without, dtype=int))
        square = (config.size, config.size)
        self._order: BucketOrder | SquareOrder = SquareOrder(used, share.batch_size, square, seed)
        if len(sizes) > 1:
            members = sort_into_buckets(_shapes(source, used), sizes, share.batch_size)
            members = {size: used[rows] for size, rows in members.items()}
            self._order = BucketOrder(members, share.batch_size, seed)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        step, micro = key
        slots, chosen = self.share.slots(micro), self._order(step)
        pool, size = chosen.pool, chosen.size
        samples = [
            self._prepare.fill(chosen.indices[slot], len(pool), lambda row: int(pool[row]), size, step, slot)
            for slot in slots
        ]
        return make_batch(step, slots, samples)


def _shapes(source: IndexedSource, indices: np.ndarray) -> list[Size | None]:
    """Height and width of each of these images, read from its header; None if it is unreadable."""

    def shape(index: int) -> Size | None:
        try:
            return source.shape(index)
        except UnreadableError:
            return None

    return list(track(map(shape, indices.tolist()), "looking up the shapes of images", len(indices)))


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
    """Yield the micro-batches of steps `start` to `end`, in order, made by `workers` processes."""
    keys = Steps(start, end, data.share.accumulation)
    # batch_size None: `data` makes whole batches itself.
    return run(DataLoader(data, batch_size=None, sampler=keys, num_workers=workers, worker_init_fn=ignore_signals))


def run(loader: DataLoader[Batch]) -> Generator[Batch, None, None]:
    """Yield the loader's batches; raise a UserError of a loader process without torch's traceback in its message."""
    batches = iter(loader)
    try:
        yield from batches
    except UserError as error:
        text = str(error).strip()
        if not text.startswith("Caught "):
            raise
        raise UserError(text.splitlines()[-1].partition(": ")[2]) from None
    finally:
        # Loader processes ignore SIGTERM, by which Python would end them at exit: torch's own way ends them at once.
        if loader.num_workers:
            batches._shutdown_workers()


def ignore_signals(worker: int) -> None:
    """Let a loader process outlive signals that all processes get: training still saves."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
