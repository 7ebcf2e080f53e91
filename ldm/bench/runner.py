"""Measure the sides of a workload in turn on one machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ldm.bench.machine import Peaks, timed
from ldm.bench.memory import with_peak
from ldm.bench.workload import Workload

RUNS, FEWEST = 7, 3
LONG = 240  # seconds after which no further run is counted


@dataclass(frozen=True)
class Row:
    """Measurements of one workload, by side."""

    name: str
    seconds: Mapping[str, list[float]]  # of each counted run; not for untimed sides
    errors: Mapping[str, float | None]  # None if there is nothing to compare
    memory: Mapping[str, int | None]  # peak bytes of the first run; None if unknown
    flops: int | None  # of a run; None if unknown
    images: int | None  # of a run
    peak: float  # floating-point operations per second of the machine in the dtype of ours

    def milliseconds(self, side: str) -> float:
        """Return the median of a side's runs."""
        return 1000 * median(self.seconds[side])

    def ratio(self, side: str) -> float:
        """Return the time of a side divided by that of ours."""
        return self.milliseconds(side) / self.milliseconds("ours")

    @property
    def share_of_peak(self) -> float | None:
        """Fraction of the machine's peak that ours reaches; None if the operations are unknown."""
        return None if self.flops is None else self.flops / median(self.seconds["ours"]) / self.peak

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        facts: dict[str, Any] = {"name": self.name}
        for side in self.seconds:
            facts[f"{side}_ms"] = self.milliseconds(side)
            if side != "ours":
                facts["ratio" if side == "theirs" else f"{side}_ratio"] = self.ratio(side)
        errors = {side: error for side, error in self.errors.items() if side != "theirs"}  # the reference
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
    set_up: Callable[[str], None] = lambda side: None,
) -> Row:
    """Run every side once for its output and memory, then all timed sides in turn, `runs` times.

    Since sides take turns, a temporary slowdown of the machine affects all of them.

    Args:
        runs: by default `RUNS`, or as many as `LONG` allows but at least `FEWEST`.
        set_up: is called with the side before each run, to set up the process.
    """
    outputs, memory = {}, {}
    for side, run in workload.sides.items():
        set_up(side)
        outputs[side], memory[side] = with_peak(run, device)
    if workload.in_subprocess:
        memory = dict.fromkeys(memory)
    reference = outputs.get("theirs") if workload.plain is None else workload.plain()
    errors = {side: relative_error(output, reference) for side, output in outputs.items()}
    del outputs, reference
    sides = {side: run for side, run in workload.sides.items() if side != "tiled"}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    start = time.monotonic()
    for number in range(runs or RUNS):
        if runs is None and number >= FEWEST and time.monotonic() - start > LONG:
            break
        for side, run in sides.items():
            set_up(side)
            seconds[side].append(timed(run, device))
    return Row(name, seconds, errors, memory, workload.flops, workload.images, peaks.of(workload.dtype))


def relative_error(output: Tensor | None, reference: Tensor | None) -> float | None:
    """Return the L2 norm of the difference relative to the reference's norm; None if one is missing."""
    if output is None or reference is None:
        return None
    exact = reference.double()
    return ((output.double() - exact).norm() / exact.norm()).item()
