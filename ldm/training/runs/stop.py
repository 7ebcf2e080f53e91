"""Reasons to stop before the last step: a time limit or a signal."""

from __future__ import annotations

import math
import re
import signal
import time
from dataclasses import dataclass
from types import FrameType

import torch
from accelerate import Accelerator
from accelerate.utils import gather

from ldm.errors import UserError


@dataclass(frozen=True)
class Limits:
    """When to stop before the configured number of steps."""

    seconds: float | None = None  # of this command, not counting the last save
    budget: float | None = None  # of training over all commands of a run; see `Clock`


class Stop:
    """Watches the time limit, SIGINT and SIGTERM; a second SIGINT interrupts at once."""

    def __init__(self, accelerator: Accelerator, limits: Limits) -> None:
        self.accelerator = accelerator
        self.deadline = math.inf if limits.seconds is None else time.monotonic() + limits.seconds
        self.signals = 0

    def __enter__(self) -> Stop:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signals += 1
        if self.signals > 1 and number == signal.SIGINT:
            raise KeyboardInterrupt

    def reason(self, step: int, every: int) -> str | None:
        """Return `signal`, `time` or None, the same in all processes.

        Several processes agree only every `every` steps, since that synchronizes them.
        """
        reason = 2 if self.signals else 1 if time.monotonic() > self.deadline else 0
        if self.accelerator.num_processes > 1:
            if step % every:
                return None
            reason = int(gather(torch.tensor([reason], device=self.accelerator.device)).max())
        return (None, "time", "signal")[reason]


def parse_duration(text: str) -> float:
    """Parse a duration such as `90s`, `9m`, `1h30m` or a bare number of seconds.

    Returns:
        Seconds.

    Raises:
        UserError: for anything else.
    """
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if not text.strip() or match is None:
        raise UserError(f"--max-time {text!r}: expected a duration such as 90s, 9m or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds
