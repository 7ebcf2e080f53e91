"""Unreadable samples: counted over all processes, listed by name, and an error if there are too many."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ldm.data.broken import Broken
from ldm.errors import UserError
from ldm.storage.store import save_text

ENOUGH = 1000  # samples after which the share of unreadable ones is judged
SHOWN = 100  # names in the summary; the file has all


class BrokenReport:
    """`broken.jsonl` of a run: name and reason of each unreadable sample, once."""

    def __init__(self, path: Path, accelerator: Accelerator, limit: float, images: int) -> None:
        self.path, self.accelerator, self.limit = path, accelerator, limit
        self.enough = min(ENOUGH, images)  # a small set is judged after one pass
        self.read = self.failed = 0
        self._new: list[Broken] = []
        self.found = _read(path)

    def note(self, broken: Sequence[Broken]) -> None:
        """Remember the unreadable samples of a micro-batch of this process."""
        self._new += broken

    def check(self, read: int) -> None:
        """Combine what all processes have noted and write new names; all processes must call this.

        Args:
            read: The number of samples that all processes have read since the last call.

        Raises:
            UserError: if more than the configured share of at least 1000 samples, or of all, is unreadable.
        """
        failed = int(self.accelerator.reduce(torch.tensor(len(self._new), device=self.accelerator.device), "sum"))
        self.read, self.failed = self.read + read + failed, self.failed + failed
        if failed:
            self._gather()
        self._new = []
        if self.read >= self.enough and self.failed > self.limit * self.read:
            name, reason = next(iter(self.found.items()))
            raise UserError(
                f"{self.failed:,} of {self.read:,} samples of the data cannot be read, more than data.max_broken "
                f"{self.limit:g}: {name} ({reason}) and others, listed in {self.path}"
            )

    def summary(self) -> str | None:
        """Return all unreadable samples, one per line; None if there are none."""
        if not self.found:
            return None
        lines = [f"  {name}: {reason}" for name, reason in sorted(self.found.items())[:SHOWN]]
        more = [f"  and {len(self.found) - SHOWN:,} more"] if len(self.found) > SHOWN else []
        head = f"{len(self.found):,} unreadable samples were replaced by others ({self.path}):"
        return "\n".join([head, *lines, *more])

    def _gather(self) -> None:
        before = len(self.found)
        for broken in gather_object(self._new):
            self.found.setdefault(broken.name, broken.reason)
        if self.accelerator.is_main_process and len(self.found) > before:
            rows = [json.dumps({"name": name, "reason": reason}) for name, reason in sorted(self.found.items())]
            save_text(self.path, "\n".join(rows) + "\n")


def _read(path: Path) -> dict[str, str]:
    """Read what a run found before it was resumed."""
    if not path.is_file():
        return {}
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["name"]: row["reason"] for row in rows}
