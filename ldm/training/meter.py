"""Losses and rates between two reports."""

from __future__ import annotations

import math
import time

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor

from ldm.errors import UserError


class Meter:
    """Means of the losses since the last report, read from the device only when they are logged."""

    def __init__(self, accelerator: Accelerator, batch_size: int) -> None:
        self.accelerator, self.batch_size = accelerator, batch_size
        self.began = self.last = time.monotonic()
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.steps = 0

    def add(self, losses: dict[str, Tensor]) -> None:
        """Add the detached scalars of one step."""
        self.steps += 1
        for name, value in losses.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
            self.counts[name] = self.counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """Means over steps and processes, and rates; starts anew. UserError when a loss is not finite."""
        names = sorted(self.sums)
        means = torch.stack([self.sums[name].float() / self.counts[name] for name in names])
        means = self.accelerator.reduce(means, "mean")
        facts = dict(zip(names, means.tolist(), strict=True))
        broken = [name for name, value in facts.items() if not math.isfinite(value)]
        if broken:
            raise UserError(
                f"training diverged: {', '.join(broken)} not finite; older saves are untouched. A lower learning "
                "rate or mixed_precision=no usually helps"
            )
        now = time.monotonic()
        seconds = (now - self.last) / self.steps
        rates = {"seconds_per_step": seconds, "pictures_per_second": self.batch_size / seconds}
        self.last, self.steps = now, 0
        self.sums, self.counts = {}, {}
        return {**facts, **rates, "memory_mib": memory_mib(), "seconds": now - self.began}


def memory_mib() -> float:
    """The most that this process has held of its GPU so far or, where it uses none, what it holds of the machine."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return psutil.Process().memory_info().rss / 2**20
