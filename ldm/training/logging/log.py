"""The log of a run: `log.jsonl`, and a progress bar on a terminal or plain lines elsewhere."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ldm.errors import UserError
from ldm.storage.renames import current_facts
from ldm.storage.store import save_text

WIDTH = 120  # of a line off a terminal
# Shown otherwise, or of little use in a line.
SHOWN = {"step", "loss", "learning_rate", "learning_rate_factor", "images_per_second", "seconds_per_step", "seconds"}
SHOWN |= {"memory_mib"}


class Log:
    """Writes a line of JSON for each report and shows it; a user error that ends training is the last line.

    A log that cannot be written causes one warning.
    """

    def __init__(
        self,
        path: Path | None,
        start: int,
        end: int,
        also: Callable[[dict[str, Any]], None] | None = None,
        now: Callable[[], int] | None = None,
    ) -> None:
        """Open the log.

        Args:
            path: `log.jsonl`; None: write and show nothing.
            start: The step that training continues from; later ones are removed.
            end: The last step.
            also: Called with every report, in all processes.
            now: Returns the current step, for the line of an error.
        """
        self.path, self.end, self._also, self._now = path, end, also, now
        self._bar: Progress | None = None
        self._complaints: set[str] = set()
        if path is not None:
            _truncate(path, start)
            if sys.stderr.isatty():
                columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[text]}"))
                self._bar = Progress(*columns, console=Console(stderr=True))
                self._task = self._bar.add_task("", total=end, completed=start, text="")

    def __enter__(self) -> Log:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if isinstance(error, UserError) and self._now is not None:
            self.write({"step": self._now(), "stopped": str(error)})

    def report(self, facts: dict[str, Any]) -> None:
        """Record the losses and rates of a step, and show them."""
        self.note(facts)
        if self.path is None:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=facts["step"], text=_brief(facts))
        else:
            self.say(_line(facts, self.end))

    def note(self, facts: dict[str, Any]) -> None:
        """Record facts of a step without showing them."""
        if self._also is not None:
            self._also(facts)
        self.write(facts)

    def announce(self, step: int, facts: dict[str, str], message: str) -> None:
        """Record words about a step, and show them."""
        self.write({"step": step, **facts})
        self.say(f"step {step}: {message}")

    def write(self, facts: dict[str, Any]) -> None:
        """Append a line to the file only."""
        if self.path is not None:
            with self.excused(f"{self.path} could not be written"), self.path.open("a") as file:
                file.write(json.dumps(facts) + "\n")

    def say(self, message: str) -> None:
        """Show a line without recording it."""
        if self.path is None:
            return
        if self._bar is not None:
            self._bar.console.print(message, highlight=False)
        else:
            print(message, file=sys.stderr)

    @contextmanager
    def excused(self, complaint: str) -> Iterator[None]:
        """Turn a failed write that training does not depend on into a warning, once per `complaint`."""
        try:
            yield
        except OSError as error:
            if complaint not in self._complaints:
                self._complaints.add(complaint)
                self.say(f"{complaint}: {error.strerror or error}; training continues")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the reports of a log, oldest first, under the names of today.

    Lines that are incomplete, after a full disk or a kill, are left out.
    """
    reports = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            reports.append(current_facts(json.loads(line)))
        except json.JSONDecodeError:
            continue
    return reports


def _truncate(path: Path, step: int) -> None:
    """Remove what was logged after the step that training continues from."""
    if path.is_file():
        save_text(path, "".join(json.dumps(facts) + "\n" for facts in read_log(path) if facts["step"] <= step))


def _line(facts: dict[str, Any], end: int) -> str:
    """Format a report as one line: step, loss, learning rate, speed and time left, then other losses that fit."""
    left = _duration((end - facts["step"]) * facts["seconds_per_step"])
    words = [f"step {facts['step']}/{end}"]
    words += [f"{name} {facts[name]:.5g}" for name in ("loss", "learning_rate") if name in facts]
    words += [f"{facts[name]:.4g} images/s" for name in ("images_per_second",) if name in facts]
    words.append(f"{left} left")
    for name, value in facts.items():
        word = f"{name} {value:.4g}" if isinstance(value, int | float) else ""
        if word and name not in SHOWN and len("  ".join([*words, word])) < WIDTH:
            words.append(word)
    return "  ".join(words)


def _brief(facts: dict[str, Any]) -> str:
    """Format loss, rate and memory for the end of the progress bar."""
    words = [f"loss {facts.get('loss', math.nan):.4g}", f"{facts['images_per_second']:.3g} images/s"]
    return "  ".join(words + [f"{facts['memory_mib'] / 1024:.1f} GiB"] * ("memory_mib" in facts))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
