"""Make many scenes on several processes; the result does not depend on their number."""

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

Rendered = TypeVar("Rendered")
Result = TypeVar("Result")

SMALLEST = 16  # pixels
CHUNK = 64  # scenes a process makes at a time
FEW = 4 * CHUNK  # fewer scenes than this are not worth starting processes


@dataclass(frozen=True)
class ScenesSpec:
    """Which scenes to make: the first `num` of a seed and split, as images of `size` pixels."""

    num: int
    size: int
    seed: int
    split: Split
    concepts: int | None
    mix: Mix = "objects"

    def check(self) -> None:
        """Raise UserError if the scenes cannot be made."""
        if self.num < 1:
            raise UserError(f"the number of scenes is {self.num}: expected at least 1")
        if self.size < SMALLEST:
            raise UserError(f"scenes of {self.size} pixels are too small: expected at least {SMALLEST}")
        if self.split not in ("train", "test"):
            raise UserError(f"the split is {self.split!r}: expected train or test")
        if self.seed < 0:
            raise UserError(f"seed {self.seed} is negative: expected 0 or more")
        first(self.concepts)

    def scene(self, index: int) -> Scene:
        """Make scene number `index`."""
        return make_scene(self.seed, index, self.split, self.concepts, self.mix)


def make_all(
    spec: ScenesSpec, processes: int | None, draw: Callable[[Scene, int], Rendered]
) -> Iterator[tuple[Scene, Rendered]]:
    """Yield each scene with `draw(scene, size)`; by default use one process per core, or none for a few scenes."""
    spec.check()
    yield from make_many(partial(_make, spec, draw), spec.num, processes)


def make_many(make: Callable[[int], Result], num: int, processes: int | None) -> Iterator[Result]:
    """Yield `make(number)` for the numbers below `num`, in order; `make` is pickled."""
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
        except BrokenProcessPool as error:  # a pool of `multiprocessing` would restart them forever
            raise UserError(
                "the processes that render scenes ended early: if a script of yours started them, "
                'put its code under `if __name__ == "__main__":`'
            ) from error


def _chunk(make: Callable[[int], Result], num: int, start: int) -> list[Result]:
    return [make(index) for index in range(start, min(start + CHUNK, num))]


def _make(spec: ScenesSpec, draw: Callable[[Scene, int], Rendered], index: int) -> tuple[Scene, Rendered]:
    scene = spec.scene(index)
    return scene, draw(scene, spec.size)
