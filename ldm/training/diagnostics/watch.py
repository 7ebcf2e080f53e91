"""Diagnose a run while it trains: announce each diagnosis once, and list all of them at the end."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from ldm.config.root import Config
from ldm.training.diagnostics.overfitting import Validated, overfitting
from ldm.training.diagnostics.symptoms import Diagnosis, Report
from ldm.training.diagnostics.unet import KEPT, diagnose
from ldm.training.logging.log import Log, read_log

FORGOTTEN = 10  # reports without a diagnosis after which it no longer applies


@dataclass
class _Held:
    """The history of a diagnosis."""

    diagnosis: Diagnosis
    first: int  # step
    last: int
    missed: int = 0  # reports since `last`
    places: set[str] = field(default_factory=set)  # announced so far


class Watch:
    """Diagnose problems in the reports of a run, including the reports in the log of a resumed run."""

    def __init__(self, log: Log, stage: str, config: Config, path: Path) -> None:
        self.log, self.stage, self.config = log, stage, config
        self._reports: deque[Report] = deque(maxlen=KEPT)
        self._course: list[Validated] = []  # one for each save
        self._held: dict[str, _Held] = {}
        self._gone: dict[str, _Held] = {}
        if log.path is not None:
            for report in read_log(path):
                if "observed" in report:  # neither words nor a validation loss
                    self._update(report)
                elif "validation_loss" in report:
                    self._hold(report["step"], self._overfitting(report))

    def add(self, report: Report) -> None:
        """Add a report and announce new diagnoses and those that no longer apply."""
        if self.log.path is None:
            return
        new, gone = self._update(report)
        self._announce(report["step"], new)
        for name in gone:
            self.log.announce(report["step"], {"gone": name}, f"{name}: no longer")

    def validated(self, report: Report) -> None:
        """Add the validation losses of a save, and announce overfitting."""
        if self.log.path is not None:
            self._announce(report["step"], self._hold(report["step"], self._overfitting(report)))

    def _announce(self, step: int, new: list[Diagnosis]) -> None:
        for found in new:
            self.log.announce(step, {"found": found.title, "text": found.text}, f"{found.title}: {found.text}")

    def _overfitting(self, report: Report) -> list[Diagnosis]:
        """Return whether a validation loss shows overfitting, with the training loss since the one before."""
        since = self._course[-1].step if self._course else 0
        losses = [each["loss"] for each in self._reports if each["step"] > since and "loss" in each]
        if losses:
            self._course.append(Validated(report["step"], report["validation_loss"], fmean(losses)))
        return list(overfitting(self._course))

    def summary(self) -> str:
        """Return all diagnoses, one per line."""
        now = sorted(self._held.values(), key=lambda held: held.first)
        lines = [f"  {held.diagnosis.title} (since step {held.first}): {held.diagnosis.text}" for held in now]
        gone = [held for name, held in self._gone.items() if name not in self._held]
        lines += [f"  {held.diagnosis.title} (steps {held.first} to {held.last} only)" for held in gone]
        return "\n".join(["diagnosis:", *lines]) if lines else "diagnosis: nothing unusual"

    def _update(self, report: Report) -> tuple[list[Diagnosis], list[str]]:
        """Return diagnoses that are new or in another place, and the names of those that no longer apply."""
        self._reports.append(report)
        step = report["step"]
        for held in self._held.values():
            held.missed += 1
        new = self._hold(step, [*diagnose(self.stage, list(self._reports), self.config), *overfitting(self._course)])
        gone = [name for name, held in self._held.items() if held.missed >= FORGOTTEN]
        for name in gone:
            self._gone[name] = self._held.pop(name)
        return new, gone

    def _hold(self, step: int, diagnoses: list[Diagnosis]) -> list[Diagnosis]:
        """Note that diagnoses apply at a step; return those that are new or in another place."""
        new = []
        for found in diagnoses:
            held = self._held.setdefault(found.name, _Held(found, step, step))
            held.diagnosis, held.last, held.missed = found, step, 0
            if found.place not in held.places:
                held.places.add(found.place)
                new.append(found)
        return new
