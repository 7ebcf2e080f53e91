"""The training loop, one for all stages."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.utils import parse_flag_from_env

from ldm.config.root import Config
from ldm.config.training import StageConfig
from ldm.data.loader import BatchShare
from ldm.data.sources import Source
from ldm.devices import computes_bfloat16
from ldm.errors import UserError
from ldm.training.diagnostics.watch import Watch
from ldm.training.logging.broken import BrokenReport
from ldm.training.logging.curves import draw_curves
from ldm.training.logging.log import Log
from ldm.training.logging.meter import Meter
from ldm.training.logging.trackers import Trackers
from ldm.training.parallel import deepspeed
from ldm.training.runs.run import Run, SaveError
from ldm.training.runs.saving import Saver
from ldm.training.runs.stop import Limits, Stop
from ldm.training.stages.stage import Stage
from ldm.training.transfer import on_device


def train(stage: Stage, source: Source, config: Config, run: Run, limits: Limits) -> None:
    """Train `stage` to its last step or the time limit; save, and write the newest model to the top of the run.

    A save that fails on the way is reported, and training goes on; the last one must succeed, else SaveError is raised.
    Raises KeyboardInterrupt, with the work saved, after SIGINT or SIGTERM, and DivergedError, the steps saved before
    being good, when losses or gradients are no longer finite.
    """
    accelerator, settings = stage.accelerator, stage.config
    saver = Saver(stage, run, config, source)
    divergence = saver.divergence
    step, inexact = saver.resume(limits.budget)
    clock = saver.clock
    limits = replace(limits, seconds=clock.left(limits.seconds))
    saved = step
    share = share_of(accelerator, settings.batch_size, settings.gradient_accumulation)
    end, images = settings.max_steps, stage.needs_images
    read = source.batches(config, share, step + 1, end, images, stage.unreadable)
    loader = on_device(read, accelerator.device)
    broken = BrokenReport(run.path / "broken.jsonl", accelerator, config.data.max_broken, len(source))
    trackers = Trackers(accelerator, config)
    log = Log(run.path / "log.jsonl" if accelerator.is_main_process else None, step, settings.max_steps, trackers.log)
    watch = Watch(log, stage.name, config, run.path / "log.jsonl")
    meter, stop = Meter(accelerator, settings.batch_size), None
    with log, contextlib.closing(read), Stop(accelerator, limits) as asked:
        log.say(f"{stage.name}: {_processes(accelerator, settings)}, steps {step + 1} to {settings.max_steps}")
        if inexact:
            log.say(inexact)
        while step < settings.max_steps and stop is None:
            step += 1
            batches = [broken.note(next(loader)) for _ in range(share.accumulation)]
            rate = stage.begin(step, clock.at(step))
            losses = stage.losses(batches, step)
            meter.add(losses, stage.observed)
            divergence.note(step, losses)
            log.step(step)
            if step % settings.log_every == 0 or step in (1, settings.max_steps):
                report = {"step": step, **divergence.check(), **meter.read(), "learning_rate_factor": rate}
                log.report(report)
                watch.see(report)
                broken.check()
            stop = asked.at(step, settings.log_every)
            if step % settings.sample_every == 0 and step < settings.max_steps:
                _sample(stage, run, step, log, trackers)
            if step % settings.save_every == 0 and step < settings.max_steps:
                saved = _try_to_save(saver, step, saved, log)
        if stop == "signal" and step < settings.max_steps:
            if step > saved:
                _save(saver, step, log)
            log.say(f"interrupted: step {step} is saved in {run.path}, --resume continues")
            raise KeyboardInterrupt
        broken.check()
        with stage.averaged():
            facts = stage.finish(source)
        if facts:
            log.note({"step": step, **facts})
            watch.see({"step": step, **facts})
        facts |= _save(saver, step, log)
        _sample(stage, run, step, log, trackers)
        if accelerator.is_main_process:
            _publish(run, log)
        log.say("  ".join([f"step {step} is saved in {run.path}", *(f"{key} {fact}" for key, fact in facts.items())]))
        if (summary := broken.summary()) is not None:
            log.say(summary)
        log.say(watch.summary())
    accelerator.wait_for_everyone()


def _processes(accelerator: Accelerator, settings: StageConfig) -> str:
    count, device = accelerator.num_processes, accelerator.device.type
    precision = precision_of(settings)
    instead = ", as this processor has no instructions for bf16" if precision != settings.mixed_precision else ""
    return f"{count} process{'es' * (count > 1)} on {device}, mixed precision {precision}{instead}"


def precision_of(settings: StageConfig) -> str:
    """The mixed precision that is trained in: the one asked for, but `no` for bf16 where a CPU lacks instructions.

    Without those for bfloat16 a product in it takes hundreds of times as long as one in float32.
    """
    device = PartialState(parse_flag_from_env("ACCELERATE_USE_CPU")).device  # as Accelerator makes it
    lacking = settings.mixed_precision == "bf16" and device.type == "cpu" and not computes_bfloat16(device)
    return "no" if lacking else settings.mixed_precision


def share_of(accelerator: Accelerator, batch_size: int, accumulation: int) -> BatchShare:
    """This process' part of the global batch; UserError when it cannot be divided evenly."""
    parts = accelerator.num_processes * accumulation
    if batch_size % parts:
        raise UserError(
            f"batch_size {batch_size} cannot be divided among {accelerator.num_processes} processes with "
            f"gradient_accumulation {accumulation}"
        )
    return BatchShare(batch_size, accelerator.process_index, accelerator.num_processes, accumulation)


def _save(saver: Saver, step: int, log: Log) -> dict[str, float]:
    """Save a step; the loss on the validation draw, where there is one."""
    saver.divergence.check()
    found = saver.validate()
    if found and all(
        map(math.isfinite, found.values())
    ):  # noted before the step is saved: what is killed in between does both again
        log.note({"step": step, **found})
    saver.save(step, found)
    if log.path is not None:
        with log.excused("curves.png could not be drawn"):
            draw_curves(log.path, saver.run.path / "curves.png")
    return found


def _try_to_save(saver: Saver, step: int, saved: int, log: Log) -> int:
    """Save a step on the way: the number of the newest saved step, which is the older one when that fails."""
    try:
        _save(saver, step, log)
    except SaveError as error:
        log.say(f"{error}; training goes on and saves again at step {step + saver.stage.config.save_every}")
        return saved
    return step


def _publish(run: Run, log: Log) -> None:
    try:
        run.publish()
    except SaveError as error:
        log.say(str(error))


def _sample(stage: Stage, run: Run, step: int, log: Log, trackers: Trackers) -> None:
    with stage.averaged():
        image = stage.sample() if stage.accelerator.is_main_process else None
        if image is not None:
            trackers.image(image, step)
            path = run.path / "samples" / f"step-{step:06d}.png"
            with log.excused(f"{path} could not be written"):
                path.parent.mkdir(exist_ok=True)
                image.save(path)
    stage.accelerator.wait_for_everyone()


def start_accelerator(
    settings: StageConfig, seed: int, trackers: Sequence[str] = (), folder: Path | None = None
) -> Accelerator:
    """accelerate's view of the processes and devices, and the seed of the networks' first weights.

    `trackers` are told what is logged, and keep what they keep on this machine in `folder`. UserError for ways to
    divide a network among processes that ldm does not know.
    """
    sharded = deepspeed.is_asked_for()
    precision = "no" if sharded else precision_of(settings)  # DeepSpeed's own configuration is told of it below
    accelerator = Accelerator(mixed_precision=precision, log_with=list(trackers) or None, project_dir=folder)
    kind = accelerator.distributed_type
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise UserError(f"ldm does not train with {kind.value}: FSDP of version 2 does the same, see docs/training.md")
    if kind == DistributedType.FSDP and settings.optimizer == "adamw8bit":
        raise UserError("optimizer adamw8bit cannot step weights that FSDP2 divides: set optimizer=adamw")
    if sharded:
        deepspeed.configure(accelerator, settings.model_copy(update={"mixed_precision": precision_of(settings)}))
    if settings.mixed_precision != "no":  # then no more is asked of what is left in float32
        torch.backends.cuda.matmul.allow_tf32 = True
    torch.manual_seed(seed)
    return accelerator
