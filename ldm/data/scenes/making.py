"""Many scenes at once, on several processes; what comes out never depends on how many."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from ldm.data.scenes.compose import Mix, Split, make_scene
from ldm.data.scenes.scene import Scene
from ldm.data.scenes.vocabulary import first
from ldm.errors import UserError

Drawn = TypeVar("Drawn")
Made = TypeVar("Made")

SMALLEST = 16  # pixels
CHUNK = 64  # scenes a process makes at a time
FEW = 4 * CHUNK  # fewer scenes than this are not worth starting processes


@dataclass(frozen=True)
class Order:
    """Which scenes to make: the first `num` of a seed and split, as images of `size` pixels."""

    num: int
    size: int
    seed: int
    split: Split
    concepts: int | None
    mix: Mix = "objects"

    def check(self) -> None:
        """UserError when it cannot be carried out."""
        if self.num < 1:
            raise UserError(f"{self.num} scenes asked for: at least 1 is needed")
        if self.size < SMALLEST:
            raise UserError(f"scenes of {self.size} pixels are too small to see: at least {SMALLEST} are needed")
        if self.split not in ("train", "test"):
            raise UserError(f"no split {self.split!r}: expected train or test")
        if self.seed < 0:
            raise UserError(f"seed {self.seed} is negative: expected 0 or more")
        first(self.concepts)

    def scene(self, index: int) -> Scene:
        """Scene number `index`."""
        return make_scene(self.seed, index, self.split, self.concepts, self.mix)


def make_all(order: Order, processes: int | None, draw: Callable[[Scene, int], Drawn]) -> Iterator[tuple[Scene, Drawn]]:
    """Scenes in order, and what `draw` makes of each; `processes` None: one a core, or this one alone for a few."""
    order.check()
    yield from make_many(partial(_make, order, draw), order.num, processes)


def make_many(make: Callable[[int], Made], num: int, processes: int | None) -> Iterator[Made]:
    """What `make` returns for the numbers below `num`, in their order; it goes to the processes by its name."""
    if processes is None:
        processes = 1 if num < FEW else os.cpu_count() or 1
    starts = range(0, num, CHUNK)
    if processes == 1:
        for start in starts:
            yield from _chunk(make, num, start)
        return
    # A fresh interpreter each: forking a process that runs threads (torch) can hang.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(starts)), mp_context=spawn) as pool:
        try:
            for made in pool.map(partial(_chunk, make, num), starts):
                yield from made
        except BrokenProcessPool as error:  # a pool of `multiprocessing` would start them again without end
            raise UserError(
                "the processes that render scenes ended early: if a script of yours started them, "
                'put its code under `if __name__ == "__main__":`'
            ) from error


def _chunk(make: Callable[[int], Made], num: int, start: int) -> list[Made]:
    return [make(index) for index in range(start, min(start + CHUNK, num))]


def _make(order: Order, draw: Callable[[Scene, int], Drawn], index: int) -> tuple[Scene, Drawn]:
    scene = order.scene(index)
    return scene, draw(scene, order.size)
