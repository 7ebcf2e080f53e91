"""The training loop, one for all stages."""

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
from torch import Tensor

from ldm.config import Config, StageConfig
from ldm.data.loader import Share, training_batches
from ldm.data.shards import Shards
from ldm.data.sources import Source
from ldm.errors import UserError
from ldm.training.broken import BrokenReport
from ldm.training.log import Log
from ldm.training.run import Run
from ldm.training.stage import Stage


@dataclass(frozen=True)
class Limits:
    """When to stop before the configured number of steps."""

    seconds: float | None = None  # of this process' time, saving not included


def train(stage: Stage, source: Source | Shards, config: Config, run: Run, limits: Limits) -> None:
    """Train `stage` to its last step or the time limit; save, and write the newest model to the top of the run.

    Raises KeyboardInterrupt, with the work saved, after SIGINT or SIGTERM.
    """
    accelerator, settings = stage.accelerator, stage.config
    step = saved = resume(stage, run)
    share = share_of(accelerator, settings.batch_size, settings.gradient_accumulation)
    end, pictures = settings.max_steps, stage.needs_pictures
    loader = training_batches(source, config, share, step + 1, end, pictures, stage.unreadable)
    broken = BrokenReport(run.path / "broken.jsonl", accelerator, config.data.max_broken, len(source))
    log = Log(run.path / "log.jsonl" if accelerator.is_main_process else None, step, settings.max_steps)
    meter, stop = Meter(accelerator, settings.batch_size), None
    with log, _Stop(accelerator, limits) as asked:
        log.say(f"{stage.name}: {_processes(accelerator)}, steps {step + 1} to {settings.max_steps}")
        while step < settings.max_steps and stop is None:
            step += 1
            batches = [broken.note(next(loader)) for _ in range(share.accumulation)]
            rate = stage.set_learning_rate(step)
            meter.add(stage.losses(batches, step))
            log.step(step)
            if step % settings.log_every == 0 or step in (1, settings.max_steps):
                log.report({"step": step, **meter.read(), "learning_rate_factor": rate})
                broken.check()
            stop = asked.at(step, settings.log_every)
            if step % settings.sample_every == 0 and step < settings.max_steps:
                _sample(stage, run, step)
            if step % settings.save_every == 0 and step < settings.max_steps:
                save(stage, run, step, config)
                saved = step
        if stop == "signal" and step < settings.max_steps:
            if step > saved:
                save(stage, run, step, config)
            log.say(f"interrupted: step {step} is saved in {run.path}, --resume continues")
            raise KeyboardInterrupt
        broken.check()
        facts = stage.finish(source)
        save(stage, run, step, config)
        _sample(stage, run, step)
        if accelerator.is_main_process:
            run.publish()
        log.say("  ".join([f"step {step} is saved in {run.path}", *(f"{key} {fact}" for key, fact in facts.items())]))
        if (summary := broken.summary()) is not None:
            log.say(summary)
    accelerator.wait_for_everyone()


def _processes(accelerator: Accelerator) -> str:
    count, device = accelerator.num_processes, accelerator.device.type
    return f"{count} process{'es' * (count > 1)} on {device}, mixed precision {accelerator.mixed_precision}"


def share_of(accelerator: Accelerator, batch_size: int, accumulation: int) -> Share:
    """This process' part of the global batch; UserError when it cannot be divided evenly."""
    parts = accelerator.num_processes * accumulation
    if batch_size % parts:
        raise UserError(
            f"batch_size {batch_size} cannot be divided among {accelerator.num_processes} processes with "
            f"gradient_accumulation {accumulation}"
        )
    return Share(batch_size, accelerator.process_index, accelerator.num_processes, accumulation)


def resume(stage: Stage, run: Run) -> int:
    """Load the newest state of the run into the stage; the step it was written at, 0 in an empty run."""
    loaded = run.load_state()
    if loaded is None:
        return 0
    step, state, folder = loaded
    try:
        stage.load_state(state)
    except (RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder} was written by another configuration and cannot be resumed: {reason}") from error
    if stage.accelerator.is_main_process:
        run.unpublish()
    return step


def save(stage: Stage, run: Run, step: int, config: Config) -> None:
    """Write `step-N`; the other processes wait."""
    if stage.accelerator.is_main_process:
        run.save(step, stage.save, stage.state(), config)
        run.prune(stage.config.keep)
    stage.accelerator.wait_for_everyone()


def _sample(stage: Stage, run: Run, step: int) -> None:
    if stage.accelerator.is_main_process:
        picture = stage.sample()
        if picture is not None:
            folder = run.path / "samples"
            folder.mkdir(exist_ok=True)
            picture.save(folder / f"step-{step:06d}.png")
    stage.accelerator.wait_for_everyone()


class Meter:
    """Means of the losses since the last report, read from the device only when they are logged."""

    def __init__(self, accelerator: Accelerator, batch_size: int) -> None:
        self.accelerator, self.batch_size = accelerator, batch_size
        self.began = self.last = time.monotonic()
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.steps = 0

    def add(self, losses: dict[str, Tensor]) -> None:
        """Add the detached scalars of one step."""
        self.steps += 1
        for name, value in losses.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
            self.counts[name] = self.counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """Means over steps and processes, and rates; starts anew. UserError when a loss is not finite."""
        names = sorted(self.sums)
        means = torch.stack([self.sums[name].float() / self.counts[name] for name in names])
        means = self.accelerator.reduce(means, "mean")
        facts = dict(zip(names, means.tolist(), strict=True))
        broken = [name for name, value in facts.items() if not math.isfinite(value)]
        if broken:
            raise UserError(
                f"training diverged: {', '.join(broken)} not finite; older saves are untouched. A lower learning "
                "rate or mixed_precision=no usually helps"
            )
        now = time.monotonic()
        seconds = (now - self.last) / self.steps
        rates = {"seconds_per_step": seconds, "pictures_per_second": self.batch_size / seconds}
        self.last, self.steps = now, 0
        self.sums, self.counts = {}, {}
        return {**facts, **rates, "seconds": now - self.began}


class _Stop:
    """Why training should stop now: the time limit, or SIGINT or SIGTERM, which a second SIGINT makes immediate."""

    def __init__(self, accelerator: Accelerator, limits: Limits) -> None:
        self.accelerator = accelerator
        self.deadline = math.inf if limits.seconds is None else time.monotonic() + limits.seconds
        self.signals = 0

    def __enter__(self) -> _Stop:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signals += 1
        if self.signals > 1 and number == signal.SIGINT:
            raise KeyboardInterrupt

    def at(self, step: int, every: int) -> str | None:
        """`signal`, `time` or None, the same for all processes.

        Agreeing costs a synchronisation, so several processes ask each other only every so many steps.
        """
        reason = 2 if self.signals else 1 if time.monotonic() > self.deadline else 0
        if self.accelerator.num_processes > 1:
            if step % every:
                return None
            flags = gather(torch.tensor([reason], device=self.accelerator.device))
            reason = int(flags.max())
        return (None, "time", "signal")[reason]


def parse_duration(text: str) -> float:
    """Seconds of a duration such as `90s`, `9m`, `1h30m` or a bare number of seconds; UserError for anything else."""
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if not text.strip() or match is None:
        raise UserError(f"--max-time {text!r}: expected a duration such as 90s, 9m or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def start_accelerator(settings: StageConfig, seed: int) -> Accelerator:
    """accelerate's view of the processes and devices, and the seed of the networks' first weights."""
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    torch.manual_seed(seed)
    return accelerator
