"""A workload's sides, turn by turn on one machine, and what came out of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ldm.bench.machine import Peaks, synchroniser
from ldm.bench.memory import with_peak
from ldm.bench.workload import Workload

RUNS, FEWEST = 7, 3
LONG = 240  # seconds of counted runs


@dataclass(frozen=True)
class Row:
    """What was measured of one workload; each mapping has an entry a side, that of the times one a timed side."""

    name: str
    seconds: Mapping[str, list[float]]  # of each counted run
    errors: Mapping[str, float | None]  # None: nothing to compare
    memory: Mapping[str, int | None]  # bytes that its first run takes at most; None: not known
    flops: int | None  # of a run; None: not known
    images: int | None  # of a run
    peak: float  # floating-point operations a second that the machine reaches in the precision of ours

    def milliseconds(self, side: str) -> float:
        """The median of a side's runs."""
        return 1000 * median(self.seconds[side])

    def ratio(self, side: str) -> float:
        """How many times as long as ours a side takes."""
        return self.milliseconds(side) / self.milliseconds("ours")

    @property
    def share_of_peak(self) -> float | None:
        """Of what the machine can do, how much ours does; None where the operations of a run are not known."""
        return None if self.flops is None else self.flops / median(self.seconds["ours"]) / self.peak

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: those of ours under the names of INTERFACE, of others under the side's name."""
        facts: dict[str, Any] = {"name": self.name}
        for side in self.seconds:
            facts[f"{side}_ms"] = self.milliseconds(side)
            if side != "ours":
                facts["ratio" if side == "theirs" else f"{side}_ratio"] = self.ratio(side)
        errors = {side: error for side, error in self.errors.items() if side != "theirs"}  # which is the reference
        facts |= {"error" if side == "ours" else f"{side}_error": error for side, error in errors.items()}
        facts["share_of_peak"] = self.share_of_peak
        if self.images is not None:
            facts["images_per_second"] = self.images / median(self.seconds["ours"])
        facts |= {f"{side}_peak_mib": held and held / 2**20 for side, held in self.memory.items()}
        return facts | {"runs": len(self.seconds["ours"])}


def measure(
    name: str,
    workload: Workload,
    runs: int | None,
    peaks: Peaks,
    device: torch.device,
    resolve: Callable[[str], None] = lambda side: None,
) -> Row:
    """Run every side once, to be compared and for its memory, then all that are timed in turn, `runs` times.

    So whatever slows the machine for a while slows all sides alike. None: `RUNS` times, or as often as `LONG` allows,
    but `FEWEST` times at least. `resolve` is told whose run is next, to set the process up as it is where they run.
    """
    outputs, memory = {}, {}
    for side, run in workload.sides.items():
        resolve(side)
        outputs[side], memory[side] = with_peak(run, device)
    if workload.elsewhere:
        memory = dict.fromkeys(memory)
    reference = outputs.get("theirs") if workload.plain is None else workload.plain()
    errors = {side: relative_error(output, reference) for side, output in outputs.items()}
    del outputs, reference
    sides = {side: run for side, run in workload.sides.items() if side != "tiled"}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    began = time.monotonic()
    for number in range(runs or RUNS):
        if runs is None and number >= FEWEST and time.monotonic() - began > LONG:
            break
        for side, run in sides.items():
            resolve(side)
            seconds[side].append(timed(run, device))
    return Row(name, seconds, errors, memory, workload.flops, workload.images, peaks.of(workload.dtype))


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run, until the device has done it."""
    wait = synchroniser(device)
    wait()
    began = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - began


def relative_error(output: Tensor | None, reference: Tensor | None) -> float | None:
    """The L2 norm of their difference over that of the reference; None where one of them is missing."""
    if output is None or reference is None:
        return None
    exact = reference.double()
    return ((output.double() - exact).norm() / exact.norm()).item()
