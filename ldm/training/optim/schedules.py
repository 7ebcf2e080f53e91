"""Learning-rate schedules: a warm-up, then a decay by name or by a dotted Python name; the clock that advances them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from accelerate import Accelerator

from ldm.config.training import StageConfig
from ldm.errors import UserError
from ldm.training.optim.importing import import_name

Decay = Callable[[float], float]  # share of the decay that is done, 0 to 1 -> share of the base learning rate

DECAYS: dict[str, Decay] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
}


def decay_function(name: str) -> Decay:
    """Return a built-in decay, or the function of a dotted name such as `mypackage.schedules.polynomial`.

    Raises:
        UserError: if there is none.
    """
    return DECAYS.get(name) or import_name(name, "decay", DECAYS)


def learning_rate_factor(config: StageConfig, step: int, schedule_step: int | None = None) -> float:
    """Return the share of the base learning rate in step `step`, counted from 1.

    The decay has reached `schedule_step`, by default the same step; the warm-up always follows `step`.
    """
    if step <= config.warmup_steps:
        return step / config.warmup_steps
    length = config.decay_steps or config.max_steps - config.warmup_steps
    done = 1 - (config.max_steps + 1 - (step if schedule_step is None else schedule_step)) / (length + 1)
    return decay_function(config.decay)(min(max(done, 0.0), 1.0))


class Clock:
    """Counts the training time of a run over all its commands, against a budget of seconds if there is one.

    With a budget a run ends when it is spent, after however many steps, and schedules (learning rate, start of a
    discriminator) advance with the larger share of `max_steps` and of the budget.
    """

    def __init__(self, config: StageConfig, accelerator: Accelerator, budget: float | None, spent: float) -> None:
        if budget is not None and accelerator.num_processes > 1:
            raise UserError("a time budget is supported in one process only: train for a number of steps")
        self.max_steps, self.budget, self.spent = config.max_steps, budget, spent
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Training time so far, including saving and sampling."""
        return self.spent + time.monotonic() - self._began

    def schedule_step(self, step: int) -> int:
        """Return the step that schedules have reached in optimizer step `step`: the same, or a later one."""
        if self.budget is None:
            return step
        if self.seconds >= self.budget:
            return max(step, self.max_steps)
        return max(step, math.ceil(self.max_steps * self.seconds / self.budget))

    def left(self, limit: float | None) -> float | None:
        """Return the seconds until the command, which has its own `limit`, or the run must end; None: no limit."""
        if self.budget is None:
            return limit
        left = max(self.budget - self.spent, 0.0)
        return left if limit is None else min(limit, left)
