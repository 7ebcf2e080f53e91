"""Losses, observations and rates between two reports."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor

from ldm.training.stages.stage import StepReport

Steps = list[tuple[int, dict[str, Tensor]]]  # number and losses


class Meter:
    """Collects the losses and observations of steps on the device; only a report waits for them."""

    def __init__(self, accelerator: Accelerator, batch_size: int) -> None:
        self.accelerator, self.batch_size = accelerator, batch_size
        self._began = self._last = time.monotonic()
        self._reports: list[StepReport] = []
        self._unchecked: Steps = []

    def add(self, step: int, report: StepReport) -> None:
        """Add the detached tensors of one step."""
        self._reports.append(report)
        self._unchecked.append((step, report.losses))

    def unchecked(self) -> Steps:
        """Return the losses of the steps since the last call, for `Divergence.check`."""
        steps, self._unchecked = self._unchecked, []
        return steps

    def read(self) -> dict[str, Any]:
        """Return means over steps and processes, `observed` among them, and rates; start the next interval.

        Values that are not finite are left out; `Divergence` reports those. All processes must call this.
        """
        losses = _means([report.losses for report in self._reports])
        observed = _means([report.observed for report in self._reports])
        tensors = [*losses.values(), *observed.values()]
        flat = self.accelerator.reduce(torch.cat([mean.reshape(-1) for mean in tensors]), "mean").cpu()
        values = iter(part.tolist() for part in flat.split([mean.numel() for mean in tensors]))
        facts, seen = (
            {name: value if mean.ndim else value[0] for (name, mean), value in zip(means.items(), values, strict=False)}
            for means in (losses, observed)
        )
        now = time.monotonic()
        seconds = (now - self._last) / len(self._reports)
        self._last, self._reports = now, []
        rates = {"seconds_per_step": seconds, "images_per_second": self.batch_size / seconds}
        times = {**rates, "memory_mib": memory_mib(), "seconds": now - self._began}
        return {**_finite(facts), **times, "observed": _finite(seen)}


def _means(steps: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return mean of each tensor over the steps that have it, by sorted name."""
    values: dict[str, list[Tensor]] = {}
    for tensors in steps:
        for name, tensor in tensors.items():
            values.setdefault(name, []).append(tensor)
    return {name: sum(values[name][1:], values[name][0]).float() / len(values[name]) for name in sorted(values)}


def _finite(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in facts.items()
        if all(map(math.isfinite, value if isinstance(value, list) else [value]))
    }


def memory_mib() -> float:
    """Return the peak GPU memory of this process or, without a GPU, its current main memory, in MiB."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return psutil.Process().memory_info().rss / 2**20
