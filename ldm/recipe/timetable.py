"""Track the time that each part of the recipe has taken over all commands, and the time left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ldm.storage.store import load_json, save_json

# Share of the total time at which each part ends; the time that a part does not use goes to the next one.
ENDS = {"autoencoder": 0.3, "unet": 0.86, "scores": 1.0}
RESERVE = 0.06  # share of a command's time that a training leaves for its last save and what follows it


class OutOfTimeError(Exception):
    """The time of this command is up; the next command continues."""


@dataclass
class Timetable:
    """The time of all commands, kept in a file, and of this one, in seconds; None: no limit."""

    path: Path
    total: float | None = None
    command: float | None = None
    began: float = field(default_factory=time.monotonic)
    spent: dict[str, float] = field(default_factory=dict)  # by part, in all commands
    _since: float | None = None  # when the part that is being worked on began

    def __post_init__(self) -> None:
        if self.path.is_file():
            self.spent = load_json(self.path)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside for a part, however it ends."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self.spent[name] = round(self.spent.get(name, 0.0) + time.monotonic() - self._since, 1)
            self._since = None
            save_json(self.path, self.spent)

    @property
    def seconds(self) -> float:
        """Seconds spent so far, on all parts by all commands."""
        now = 0.0 if self._since is None else time.monotonic() - self._since
        return sum(self.spent.values()) + now

    def budget(self, name: str, trained: float) -> float | None:
        """Return the total seconds of training of a part, including `trained`; None: its steps decide.

        Call this when training begins, since preparation counts towards the part's time.
        """
        if self.total is None:
            return None
        left = (ENDS[name] - RESERVE / 2) * self.total - self.seconds
        return trained + max(left, 0.0)

    def left(self) -> float | None:
        """Return the seconds that training has in this command; None: no limit."""
        return None if self.command is None else self.until_end() - RESERVE * self.command

    def until_end(self) -> float:
        """Return the seconds left for this command.

        Raises:
            OutOfTimeError: if there are none.
        """
        if self.command is None:
            return float("inf")
        left = self.began + self.command - time.monotonic()
        if left <= RESERVE * self.command:
            raise OutOfTimeError
        return left
