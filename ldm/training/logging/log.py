"""What a person sees of a run: `log.jsonl`, and a progress bar on a terminal or plain lines elsewhere."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ldm.errors import UserError
from ldm.storage.store import save_text


class Log:
    """Appends a line of JSON for each report and shows it; silent where `path` is None.

    A mistake that ends training is its last line.

    `also` is told every report besides, on all processes. A log that cannot be written is complained of once.
    """

    def __init__(
        self, path: Path | None, start: int, end: int, also: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        self.path, self.end, self._also = path, end, also
        self._bar: Progress | None = None
        self._step = start
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if isinstance(error, UserError):
            self._write({"step": self._step, "stopped": str(error)})

    def step(self, step: int) -> None:
        """Move the progress bar."""
        self._step = step
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def report(self, facts: dict[str, Any]) -> None:
        """Record the losses and rates of a step, and show them."""
        self.note(facts)
        if self.path is None:
            return
        if self._bar is not None:
            self._bar.update(self._task, text=_brief(facts))
        else:
            numbers = {name: value for name, value in facts.items() if isinstance(value, int | float)}
            words = [f"{name} {value:.5g}" for name, value in numbers.items() if name not in ("step", "seconds")]
            left = _duration((self.end - facts["step"]) * facts["seconds_per_step"])
            print(f"step {facts['step']}/{self.end}  " + "  ".join(words) + f"  {left} left", file=sys.stderr)

    def tell(self, step: int, facts: dict[str, str], message: str) -> None:
        """Record words about a step, and show them."""
        self._write({"step": step, **facts})
        self.say(f"step {step}: {message}")

    def note(self, facts: dict[str, Any]) -> None:
        """Record facts of a step without showing them."""
        if self._also is not None:
            self._also(facts)
        self._write(facts)

    def _write(self, facts: dict[str, Any]) -> None:
        if self.path is not None:
            with self.excused(f"{self.path} could not be written"), self.path.open("a") as file:
                file.write(json.dumps(facts) + "\n")

    def say(self, message: str) -> None:
        """A line for the person who watches."""
        if self.path is None:
            return
        if self._bar is not None:
            self._bar.console.print(message, highlight=False)
        else:
            print(message, file=sys.stderr)

    @contextmanager
    def excused(self, complaint: str) -> Iterator[None]:
        """What training can do without: a failed write is told once, as a line, and no more."""
        try:
            yield
        except OSError as error:
            if complaint not in self._complaints:
                self._complaints.add(complaint)
                self.say(f"{complaint}: {error.strerror or error}; training goes on")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The reports of a log, oldest first; a line that was cut off, by a full disk or a kill, is left out."""
    reports = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            reports.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return reports


def _truncate(path: Path, step: int) -> None:
    """Forget what was logged after the step that training continues from."""
    if path.is_file():
        save_text(path, "".join(json.dumps(facts) + "\n" for facts in read_log(path) if facts["step"] <= step))


def _brief(facts: dict[str, Any]) -> str:
    """Loss, rate and memory, for the end of the progress bar."""
    words = [f"loss {facts.get('loss', math.nan):.4g}", f"{facts['images_per_second']:.3g} images/s"]
    return "  ".join(words + [f"{facts['memory_mib'] / 1024:.1f} GiB"] * ("memory_mib" in facts))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
