"""Reasons to stop before the last step: a time limit or a signal."""

from __future__ import annotations

import math
import re
import signal
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, distributed

from ldm.errors import UserError
from ldm.processes import STOP_SIGNALS


@dataclass(frozen=True)
class Limits:
    """When to stop before the configured number of steps."""

    seconds: float | None = None  # of this command, not counting the last save
    budget: float | None = None  # of training over all commands of a run; see `Clock`


class Stop:
    """Watch the time limit, SIGINT, SIGTERM and SIGHUP; a second SIGINT interrupts at once.

    SIGHUP stays ignored if the process was started so, as by `nohup`.
    """

    def __init__(self, accelerator: Accelerator, limits: Limits) -> None:
        """Start to watch; with several processes, all must call this."""
        self.deadline = math.inf if limits.seconds is None else time.monotonic() + limits.seconds
        self.signals = 0
        # A group on the CPU, so that agreeing does not wait for a GPU.
        self._group = distributed.new_group(backend="gloo") if accelerator.num_processes > 1 else None
        self._exchange: tuple[Tensor, Any] | None = None  # reasons of the last step, and the exchange in progress

    def __enter__(self) -> Stop:
        ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS if number not in ignored}
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if error is None:
            self._finish_exchange()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signals += 1
        if self.signals > 1 and number == signal.SIGINT:
            raise KeyboardInterrupt

    def reason(self) -> str | None:
        """Return `signal`, `time` or None, the same in all processes; call this once in every step.

        Several processes exchange their reasons during the next step and agree after it, so that no process waits.
        """
        reason = 2 if self.signals else 1 if time.monotonic() > self.deadline else 0
        if self._group is not None:
            own, reason = reason, self._finish_exchange()
            if not reason:
                reasons = torch.tensor([own])
                work = distributed.all_reduce(reasons, distributed.ReduceOp.MAX, self._group, async_op=True)
                self._exchange = reasons, work
        return (None, "time", "signal")[reason]

    def _finish_exchange(self) -> int:
        """Wait for the exchange that the last step began, and return the largest reason."""
        if self._exchange is None:
            return 0
        (reasons, work), self._exchange = self._exchange, None
        work.wait()
        return int(reasons)


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
