"""The training loop of all stages."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.utils import parse_flag_from_env

from ldm.config.root import Config
from ldm.config.training import StageConfig
from ldm.data.loader import BatchShare
from ldm.data.sources import Source
from ldm.devices import computes_bfloat16
from ldm.errors import UserError
from ldm.models.precision import NonFiniteError
from ldm.processes import join_launcher
from ldm.training.diagnostics.watch import Watch
from ldm.training.logging.broken import BrokenReport
from ldm.training.logging.curves import plot_curves
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
    """Train `stage` to its last step or time limit, save it, and copy the newest model to the top of the run.

    An intermediate save that fails is reported and training continues.

    Raises:
        SaveError: if the last save fails.
        KeyboardInterrupt: after SIGINT, SIGTERM or SIGHUP, with the work saved.
        DivergedError: if losses or gradients are no longer finite; the steps saved before are good.
        UserError: if too many samples are unreadable.
    """
    accelerator, settings = stage.accelerator, stage.config
    saver = Saver(stage, run, config, source, limits.budget)
    saved, inexact = saver.resume()
    step = reported = saved
    clock, divergence = saver.clock, saver.divergence
    share = share_of(accelerator, settings.batch_size, settings.gradient_accumulation)
    end, images = settings.max_steps, stage.needs_images
    read = source.batches(config, share, step + 1, end, images, stage.unreadable)
    loader = on_device(read, accelerator.device)
    broken = BrokenReport(run.path / "broken.jsonl", accelerator, config.data.max_broken, len(source))
    trackers = Trackers(accelerator, config)
    path = run.path / "log.jsonl"
    log = Log(path if accelerator.is_main_process else None, step, end, trackers.log, now=lambda: step)
    watch = Watch(log, stage.name, config, path)
    meter, reason = Meter(accelerator, settings.batch_size), None
    with log, contextlib.closing(read), Stop(accelerator, replace(limits, seconds=clock.left(limits.seconds))) as stop:
        log.say(f"{stage.name}: {_processes(accelerator, settings)}, steps {step + 1} to {end}")
        if inexact:
            log.say(inexact)
        while step < end and reason is None:
            step += 1
            batches = [next(loader) for _ in range(share.accumulation)]
            schedule_step = clock.schedule_step(step)
            rate = stage.begin(step, schedule_step)
            meter.add(step, stage.train_step(batches, step, schedule_step))
            for batch in batches:
                if batch.broken:
                    broken.note(batch.broken)
            if step % settings.log_every == 0 or step in (1, end):
                skipped = divergence.check(meter.unchecked())
                rates = {"learning_rate": rate * settings.learning_rate, "learning_rate_factor": rate}
                report = {"step": step, **skipped, **meter.read(), **rates}
                log.report(report)
                watch.add(report)
                broken.check((step - reported) * settings.batch_size)
                reported = step
            reason = stop.reason()
            if step % settings.sample_every == 0 and step < end:
                _sample(stage, run, step, log, trackers)
            if step % settings.save_every == 0 and step < end:
                divergence.check(meter.unchecked())
                saved = _try_to_save(saver, step, saved, log, watch)
        divergence.check(meter.unchecked())
        if reason == "signal" and step < end:
            if step > saved:
                _save(saver, step, log, watch)
            log.say(f"interrupted: step {step} is saved in {run.path}, --resume continues")
            raise KeyboardInterrupt
        broken.check((step - reported) * settings.batch_size)
        facts = _finish(stage, source, saver, step, log, watch)
        _sample(stage, run, step, log, trackers)
        if accelerator.is_main_process:
            _publish(run, log)
        log.say("  ".join([f"step {step} is saved in {run.path}", *(f"{key} {fact}" for key, fact in facts.items())]))
        if (summary := broken.summary()) is not None:
            log.say(summary)
        log.say(watch.summary())
    accelerator.wait_for_everyone()


def _finish(stage: Stage, source: Source, saver: Saver, step: int, log: Log, watch: Watch) -> dict[str, Any]:
    """Finish the stage and save the last step; return the facts that both found."""
    with stage.averaged():
        facts = stage.finish(source)
    if facts:
        log.note({"step": step, **facts})
        watch.add({"step": step, **facts})
    return facts | _save(saver, step, log, watch)


def _save(saver: Saver, step: int, log: Log, watch: Watch) -> dict[str, float]:
    """Validate and save a step; return the validation losses, if there are any."""
    found = saver.validate()
    if found and all(map(math.isfinite, found.values())):
        log.note({"step": step, **found})  # before saving: a run killed in between does both again
        watch.validated({"step": step, **found})
    saver.save(step, found)
    if log.path is not None:
        with log.excused("curves.png could not be written"):
            plot_curves(log.path, saver.run.path / "curves.png")
    return found


def _try_to_save(saver: Saver, step: int, saved: int, log: Log, watch: Watch) -> int:
    """Save an intermediate step; return the newest saved step, which is `saved` if that fails."""
    try:
        _save(saver, step, log, watch)
    except SaveError as error:
        log.say(f"{error}; training continues and saves again at step {step + saver.stage.config.save_every}")
        return saved
    return step


def _publish(run: Run, log: Log) -> None:
    try:
        run.publish()
    except SaveError as error:
        log.say(str(error))


def _sample(stage: Stage, run: Run, step: int, log: Log, trackers: Trackers) -> None:
    with stage.averaged():
        image = None
        if stage.accelerator.is_main_process:
            try:
                image = stage.sample()
            except NonFiniteError as error:  # `Divergence` decides whether training can continue
                log.say(f"no samples of step {step}: {error}")
        if image is not None:
            trackers.image(image, step)
            path = run.path / "samples" / f"step-{step:06d}.png"
            with log.excused(f"{path} could not be written"):
                path.parent.mkdir(exist_ok=True)
                image.save(path)
    stage.accelerator.wait_for_everyone()


def _processes(accelerator: Accelerator, settings: StageConfig) -> str:
    count, device = accelerator.num_processes, accelerator.device.type
    precision = precision_of(settings)
    note = ", since this CPU has no bf16 instructions" if precision != settings.mixed_precision else ""
    return f"{count} process{'es' * (count > 1)} on {device}, mixed precision {precision}{note}"


def precision_of(settings: StageConfig) -> str:
    """Return the mixed precision of training: as configured, but `no` for bf16 on a CPU without instructions for it.

    Without them a product in bfloat16 takes hundreds of times as long as in float32.
    """
    device = PartialState(parse_flag_from_env("ACCELERATE_USE_CPU")).device  # as Accelerator does
    lacking = settings.mixed_precision == "bf16" and device.type == "cpu" and not computes_bfloat16(device)
    return "no" if lacking else settings.mixed_precision


def share_of(accelerator: Accelerator, batch_size: int, accumulation: int) -> BatchShare:
    """Return this process' share of the global batch.

    Raises:
        UserError: if the batch is not divisible.
    """
    parts = accelerator.num_processes * accumulation
    if batch_size % parts:
        raise UserError(
            f"batch_size {batch_size} is not divisible by {accelerator.num_processes} processes times "
            f"gradient_accumulation {accumulation}"
        )
    return BatchShare(batch_size, accelerator.process_index, accelerator.num_processes, accumulation)


def start_accelerator(
    settings: StageConfig, seed: int, trackers: Sequence[str] = (), folder: Path | None = None
) -> Accelerator:
    """Start accelerate for a stage and seed the initial weights of networks.

    Args:
        settings: The stage's section.
        seed: Of the initial weights.
        trackers: Names of experiment trackers.
        folder: Where trackers write their local files.

    Raises:
        UserError: if the configured sharding is not supported.
    """
    join_launcher()
    sharded = deepspeed.is_requested()
    precision = "no" if sharded else precision_of(settings)  # DeepSpeed takes it from its configuration, see below
    accelerator = Accelerator(mixed_precision=precision, log_with=list(trackers) or None, project_dir=folder)
    kind = accelerator.distributed_type
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise UserError(f"{kind.value} version 1 is not supported: use FSDP version 2, see docs/training.md")
    if kind == DistributedType.FSDP and settings.optimizer == "adamw8bit":
        raise UserError("optimizer adamw8bit is not supported with FSDP2: set optimizer=adamw")
    if sharded:
        deepspeed.configure(accelerator, settings.model_copy(update={"mixed_precision": precision_of(settings)}))
    if settings.mixed_precision != "no":  # then the operations that remain in float32 may use TF32
        torch.backends.cuda.matmul.allow_tf32 = True
    torch.manual_seed(seed)
    return accelerator
