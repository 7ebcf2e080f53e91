"""What training could not read: counted over all processes, listed by name, and a reason to stop when it is much."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ldm.data.broken import Broken
from ldm.data.loader import Batch
from ldm.errors import UserError

ENOUGH = 1000  # samples that must have been asked for before their share of broken ones says anything
SHOWN = 100  # names in the last message; the file has all


class BrokenReport:
    """`broken.jsonl` of a run: name and reason of each sample that could not be read, once."""

    def __init__(self, path: Path, accelerator: Accelerator, limit: float, images: int) -> None:
        self.path, self.accelerator, self.limit = path, accelerator, limit
        self.enough = min(ENOUGH, images)  # a small set is judged when all of it has been seen
        self.asked = self.failed = 0
        self._new: list[Broken] = []
        self._asked = 0
        self.found = _read(path)

    def note(self, batch: Batch) -> Batch:
        """Remember what was broken in a micro-batch of this process; the same batch."""
        self._asked += len(batch.slots) + len(batch.broken)
        self._new += batch.broken
        return batch

    def check(self) -> None:
        """Put together what all processes have noted, and write down new names; all processes must come here.

        UserError when more than the configured share of at least 1000 samples, or of all there are, is broken.
        """
        counts = torch.tensor([self._asked, len(self._new)], device=self.accelerator.device)
        asked, failed = self.accelerator.reduce(counts, "sum").tolist()
        self.asked, self.failed = self.asked + asked, self.failed + failed
        if failed:
            self._gather()
        self._new, self._asked = [], 0
        if self.asked >= self.enough and self.failed > self.limit * self.asked:
            name, reason = next(iter(self.found.items()))
            raise UserError(
                f"{self.failed:,} of {self.asked:,} samples of the data cannot be read, more than data.max_broken "
                f"{self.limit:g} of them: {name} ({reason}) and others, listed in {self.path}"
            )

    def summary(self) -> str | None:
        """All that was found broken, a line each; None where nothing was."""
        if not self.found:
            return None
        lines = [f"  {name}: {reason}" for name, reason in sorted(self.found.items())[:SHOWN]]
        more = [f"  and {len(self.found) - SHOWN:,} more"] if len(self.found) > SHOWN else []
        head = f"{len(self.found):,} unreadable samples, in whose places others stood ({self.path}):"
        return "\n".join([head, *lines, *more])

    def _gather(self) -> None:
        new: list[Broken] = gather_object(self._new)
        before = len(self.found)
        for broken in new:
            self.found.setdefault(broken.name, broken.reason)
        if self.accelerator.is_main_process and len(self.found) > before:
            rows = [json.dumps({"name": name, "reason": reason}) for name, reason in sorted(self.found.items())]
            work = self.path.with_suffix(".tmp")
            work.write_text("\n".join(rows) + "\n", encoding="utf-8")
            work.replace(self.path)


def _read(path: Path) -> dict[str, str]:
    """What a run found before it was resumed."""
    if not path.is_file():
        return {}
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["name"]: row["reason"] for row in rows}
