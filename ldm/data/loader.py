"""The order of the data and the batches of one process.

Which picture stands in which slot of which step is a pure function of the seed, so that a run continues where it
stopped, and several processes share the work, without any state.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ldm.config import DataConfig
from ldm.data.draws import Draws
from ldm.data.pictures import resize_and_crop, to_tensor
from ldm.data.sources import Source


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


@dataclass(frozen=True)
class Batch:
    """One micro-batch: what the samples are, and the slots from which their random numbers follow."""

    step: int
    slots: Sequence[int]
    indices: Sequence[int]
    pictures: Tensor | None  # (B, 3, H, W) in [-1, 1]; None where latents are cached
    captions: Sequence[str]


class Order:
    """Sample number n of a run -> index of a picture: each epoch is its own permutation."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self._draws = Draws(seed)
        self._epoch = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> np.ndarray:
        return torch.randperm(self.count, generator=self._draws.generator("order", epoch)).numpy()

    def __call__(self, number: int) -> int:
        """Index of the picture that is the run's sample `number`."""
        epoch, position = divmod(number, self.count)
        return int(self._epoch(epoch)[position])


class TrainingData(Dataset[Batch]):
    """Maps (step, micro-batch) to a Batch."""

    def __init__(self, source: Source, config: DataConfig, share: Share, seed: int, pictures: bool = True) -> None:
        self.source, self.config, self.share, self.pictures = source, config, share, pictures
        self._order, self._draws = Order(len(source), seed), Draws(seed)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        step, micro = key
        slots = self.share.slots(micro)
        # Steps are counted from 1; the first sample of a run is number 0.
        indices = [self._order((step - 1) * self.share.batch_size + slot) for slot in slots]
        captions = [self._caption(index, step, slot) for index, slot in zip(indices, slots, strict=True)]
        pictures = None
        if self.pictures:
            made = [self._picture(index, step, slot) for index, slot in zip(indices, slots, strict=True)]
            pictures = to_tensor(np.stack(made))
        return Batch(step, slots, indices, pictures, captions)

    def _caption(self, index: int, step: int, slot: int) -> str:
        captions = self.source.captions(index)
        return captions[self._draws.choice("caption", step, slot, len(captions))]

    def _picture(self, index: int, step: int, slot: int) -> np.ndarray:
        picture = self.source.picture(index)
        at = (0.5, 0.5)
        if self.config.random_crop:
            at = tuple(torch.rand(2, generator=self._draws.generator("crop", step, slot)).tolist())
        made = fit(picture, self.config.size, at)
        if self.config.random_flip and self._draws.choice("flip", step, slot, 2):
            made = made[:, ::-1]
        return made


def fit(picture: Image.Image | np.ndarray, size: int, at: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """A source's picture as bytes (size, size, 3); bytes of that size already are taken as they are."""
    if isinstance(picture, np.ndarray):
        if picture.shape[:2] == (size, size):
            return picture
        picture = Image.fromarray(picture)
    return resize_and_crop(picture, size, at)


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


def make_loader(data: TrainingData, start: int, end: int, workers: int = 0) -> DataLoader[Batch]:
    """Micro-batches of steps `start` to `end`, in order, made by `workers` processes."""
    keys = Steps(start, end, data.share.accumulation)
    # batch_size None: `data` makes whole batches itself.
    return DataLoader(data, batch_size=None, sampler=keys, num_workers=workers, worker_init_fn=leave_signals)


def leave_signals(worker: int) -> None:
    """Let a loader process outlive Ctrl-C and a cluster's SIGTERM, which all processes get: training saves with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
