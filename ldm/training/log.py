"""What a person sees of a run: `log.jsonl`, and a progress bar on a terminal or plain lines elsewhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Log:
    """Appends a line of JSON for each report and shows it; silent where `path` is None."""

    def __init__(self, path: Path | None, start: int, end: int) -> None:
        self.path, self.end = path, end
        self._bar: Progress | None = None
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

    def step(self, step: int) -> None:
        """Move the progress bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def report(self, facts: dict[str, Any]) -> None:
        """Record the losses and rates of a step."""
        if self.path is None:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(facts) + "\n")
        if self._bar is not None:
            losses = [f"{name} {value:.4g}" for name, value in facts.items() if name in ("loss", "pictures_per_second")]
            self._bar.update(self._task, text="  ".join(losses))
        else:
            words = [f"{name} {value:.5g}" for name, value in facts.items() if name not in ("step", "seconds")]
            left = _duration((self.end - facts["step"]) * facts["seconds_per_step"])
            print(f"step {facts['step']}/{self.end}  " + "  ".join(words) + f"  {left} left", file=sys.stderr)

    def say(self, message: str) -> None:
        """A line for the person who watches."""
        if self.path is None:
            return
        if self._bar is not None:
            self._bar.console.print(message, highlight=False)
        else:
            print(message, file=sys.stderr)


def _truncate(path: Path, step: int) -> None:
    """Forget what was logged after the step that training continues from."""
    if path.is_file():
        lines = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
        path.write_text("".join(line + "\n" for line in lines))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
