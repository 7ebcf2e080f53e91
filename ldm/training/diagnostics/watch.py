"""Tells what is wrong with a run while it trains: each thing once, as long as it stays the same, and all in the end."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from ldm.config.root import Config
from ldm.training.diagnostics.symptoms import Diagnosis, Report
from ldm.training.diagnostics.unet import KEPT, diagnose
from ldm.training.logging.log import Log, read_log

FORGOTTEN = 10  # reports without it after which a diagnosis no longer holds


@dataclass
class _Held:
    """A diagnosis since it was made first."""

    diagnosis: Diagnosis
    first: int  # step
    last: int
    missed: int = 0  # reports since `last`
    places: set[str] = field(default_factory=set)  # told so far


class Watch:
    """What is diagnosed from the reports of a run, those of its log included, which a resumed run goes on with."""

    def __init__(self, log: Log, stage: str, config: Config, path: Path) -> None:
        self.log, self.stage, self.config = log, stage, config
        self._reports: deque[Report] = deque(maxlen=KEPT)
        self._held: dict[str, _Held] = {}
        self._gone: dict[str, _Held] = {}
        if log.path is not None:
            for report in read_log(path):
                if "observed" in report:  # neither words nor a validation loss
                    self._update(report)

    def see(self, report: Report) -> None:
        """Tell what is new after one more report, and what is no more; only where there is a log to tell it to."""
        if self.log.path is None:
            return
        new, gone = self._update(report)
        step = report["step"]
        for found in new:
            self.log.tell(step, {"found": found.title, "text": found.text}, f"{found.title}: {found.text}")
        for name in gone:
            self.log.tell(step, {"gone": name}, f"{name}: no more")

    def summary(self) -> str:
        """All that was found, a line each."""
        now = sorted(self._held.values(), key=lambda held: held.first)
        lines = [f"  {held.diagnosis.title} (since step {held.first}): {held.diagnosis.text}" for held in now]
        gone = [held for name, held in self._gone.items() if name not in self._held]
        lines += [f"  {held.diagnosis.title} (steps {held.first} to {held.last}, then no more)" for held in gone]
        return "\n".join(["diagnosis:", *lines]) if lines else "diagnosis: nothing unusual was seen"

    def _update(self, report: Report) -> tuple[list[Diagnosis], list[str]]:
        """What is found for the first time or in another place, and the names of what is found no longer."""
        self._reports.append(report)
        step, new = report["step"], []
        for held in self._held.values():
            held.missed += 1
        for found in diagnose(self.stage, list(self._reports), self.config):
            held = self._held.setdefault(found.name, _Held(found, step, step))
            held.diagnosis, held.last, held.missed = found, step, 0
            if found.place not in held.places:
                held.places.add(found.place)
                new.append(found)
        gone = [name for name, held in self._held.items() if held.missed >= FORGOTTEN]
        for name in gone:
            self._gone[name] = self._held.pop(name)
        return new, gone
