"""Losses, observations and rates between two reports."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor


class Meter:
    """Means of the losses since the last report, read from the device only when they are logged."""

    def __init__(self, accelerator: Accelerator, batch_size: int) -> None:
        self.accelerator, self.batch_size = accelerator, batch_size
        self.began = self.last = time.monotonic()
        self.losses, self.observed = _Means(), _Means()
        self.steps = 0

    def add(self, losses: Mapping[str, Tensor], observed: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        """Add the detached scalars of one step, and what it observed besides, scalars or vectors."""
        self.steps += 1
        self.losses.add(losses)
        self.observed.add(observed)

    def read(self) -> dict[str, Any]:
        """Means over steps and processes, what was observed as `observed`, and rates; starts anew.

        What is not finite is left out: `Divergence` tells where it may be so.
        """
        losses, observed = self.losses.read(), self.observed.read()
        means = torch.cat([mean.reshape(-1) for mean in (*losses.values(), *observed.values())])
        values = iter(self.accelerator.reduce(means, "mean").tolist())
        facts, seen = (
            {name: value for name, value in _take(means, values).items() if _is_finite(value)}
            for means in (losses, observed)
        )
        now = time.monotonic()
        seconds = (now - self.last) / self.steps
        rates = {"seconds_per_step": seconds, "images_per_second": self.batch_size / seconds}
        self.last, self.steps = now, 0
        times = {**rates, "memory_mib": memory_mib(), "seconds": now - self.began}
        return {**facts, **times, "observed": seen}


class _Means:
    """Means of tensors by name, over the steps in which they were there."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
            self.counts[name] = self.counts.get(name, 0) + 1

    def read(self) -> dict[str, Tensor]:
        """The means so far, by sorted names; starts anew."""
        means = {name: self.sums[name].float() / self.counts[name] for name in sorted(self.sums)}
        self.sums, self.counts = {}, {}
        return means


def _take(tensors: Mapping[str, Tensor], values: Iterable[float]) -> dict[str, Any]:
    """The next values as numbers and lists of numbers, in the shapes of the tensors."""
    rest = iter(values)
    return {
        name: next(rest) if tensor.ndim == 0 else [next(rest) for _ in range(tensor.numel())]
        for name, tensor in tensors.items()
    }


def _is_finite(value: float | list[float]) -> bool:
    return all(map(math.isfinite, value if isinstance(value, list) else [value]))


def memory_mib() -> float:
    """The most that this process has held of its GPU so far or, where it uses none, what it holds of the machine."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return psutil.Process().memory_info().rss / 2**20
