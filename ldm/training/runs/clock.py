"""How far the schedules of a run have come: by its steps or, where it has a time of its own, by that."""

from __future__ import annotations

import math
import time

from accelerate import Accelerator

from ldm.config.training import StageConfig
from ldm.errors import UserError


class Clock:
    """Counts the seconds of a run's training over all commands, against those that it has in all.

    With a budget of seconds a run ends when they are spent, however many steps they are, and its schedules (the fall of
    the learning rate, the start of a discriminator) stand where they would stand at the same share of `max_steps`.
    """

    def __init__(self, config: StageConfig, accelerator: Accelerator, budget: float | None, spent: float) -> None:
        if budget is not None and accelerator.num_processes > 1:
            raise UserError("a budget of time is kept by one process alone: train with a number of steps")
        self.max_steps, self.budget, self.spent = config.max_steps, budget, spent
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Of training so far, saving and sampling included."""
        return self.spent + time.monotonic() - self._began

    def at(self, step: int) -> int:
        """The step at which schedules stand in optimiser step `step`: that one, or a later one as time passes."""
        if self.budget is None:
            return step
        if self.seconds >= self.budget:
            return max(step, self.max_steps)
        return max(step, math.ceil(self.max_steps * self.seconds / self.budget))

    def left(self, limit: float | None) -> float | None:
        """Seconds until a command with a time limit of its own, or the run, must end; None: there is no limit."""
        if self.budget is None:
            return limit
        left = max(self.budget - self.spent, 0.0)
        return left if limit is None else min(limit, left)
