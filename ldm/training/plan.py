"""What `--dry-run` prints: steps, memory, time and cost of a run. Nothing is written."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from ldm.config.root import Config
from ldm.config.training import StageConfig
from ldm.data.files import list_files
from ldm.data.images import IMAGE_SUFFIXES
from ldm.data.loader import TrainingData
from ldm.data.preview import HeldSource
from ldm.data.sources import IndexedSource, Source, open_source
from ldm.data.validation import held_out_count
from ldm.training.cost import PEAK, UTILISATION, StepCost, memory, seconds_on, step_cost
from ldm.training.loop import precision_of, share_of, start_accelerator
from ldm.training.runs.run import Run
from ldm.training.stages.stage import Stage

TRIAL_STEPS, TRIAL_SECONDS = 5, 20.0
SLOW = 2e12  # operations of a step that are not tried out on a CPU: about half a minute
MakeStage = Callable[[Config, Source, Accelerator, Run], Stage]


def plan(
    stage: str,
    config: Config,
    data: str,
    make: MakeStage | None = None,
    gpus: int | None = None,
    gpu: str | None = None,
) -> str:
    """Return lines of text about a run that would begin now.

    With `make`, which builds the stage, a few steps are timed; with `gpus` of a kind `gpu`, their time is estimated.
    """
    settings: StageConfig = config.training.of(stage)
    cost = step_cost(stage, config)
    source = None if data == "scenes" else open_source(data, config.data)
    images = config.data.scenes.num if source is None else len(source)
    validation = config.data.validation
    validated = isinstance(validation, str) or held_out_count(images, config.data) > 0
    facts = _size(settings, config, cost, images, validated)
    facts["time here"] = _time(stage, config, source, make, cost)
    if gpu is not None:
        facts |= _estimated(stage, config, data, images, cost, gpus or 1, gpu)
    width = max(len(name) for name in facts)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items())


def _size(settings: StageConfig, config: Config, cost: StepCost, images: int, validated: bool) -> dict[str, str]:
    samples = settings.max_steps * settings.batch_size
    micro = settings.batch_size // settings.gradient_accumulation
    width = 4 if precision_of(settings) == "no" else 2
    return {
        **{f"parameters of the {name}": f"{count:,}" for name, count in cost.parameters.items()},
        "images": f"{images:,} of {config.data.size}x{config.data.size}",
        "steps": f"{settings.max_steps:,} of {settings.batch_size} images",
        "epochs": f"{samples / images:.1f}",
        "memory of weights, gradients, optimiser, averages": f"{memory(settings, cost) / 2**20:,.0f} MiB a process",
        "memory of activations": f"about {cost.activations * width / 4 * micro / 2**20:,.0f} MiB, shared by processes",
        "work": f"{cost.flops * settings.batch_size / 1e12:.3g} TFLOP a step, {cost.flops * samples / 1e15:,.3g} PFLOP",
        "saves": f"every {settings.save_every:,} steps, the newest {settings.keep} kept"
        + (", and the best" if settings.keep_best and settings.validation_images and validated else ""),
    }


def _estimated(
    stage: str, config: Config, data: str, images: int, cost: StepCost, gpus: int, gpu: str
) -> dict[str, str]:
    settings: StageConfig = config.training.of(stage)
    samples = settings.max_steps * settings.batch_size
    needed = seconds_on(cost.flops * samples, gpus, gpu)
    rate = samples / needed
    per_image = _bytes_read(stage, config, data, images)
    return {
        f"time on {gpus} {gpu}": f"{_long(needed)}, {_long(gpus * needed)} of one, at {UTILISATION:.0%} of "
        f"{PEAK[gpu]} TFLOP/s each",
        "data read": f"{rate * per_image / 2**20:,.1f} MiB/s in all, {rate:,.0f} images/s",
    }


def _bytes_read(stage: str, config: Config, data: str, images: int) -> float:
    """Return the bytes of one stored image: cached moments, a file, or, if unknown, plain pixels."""
    if getattr(config.training.of(stage), "cache_latents", False):
        side = config.data.size // config.autoencoder.downsampling_factor
        return 4 * 2 * config.autoencoder.latent_channels * side**2
    path = Path(data)
    if path.is_file():
        return path.stat().st_size / images
    names = list_files(data) if path.is_dir() else ()
    sizes = [(path / name).stat().st_size for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    return sum(sizes) / len(sizes) if sizes else 3 * config.data.size**2


def _time(stage: str, config: Config, source: Source | None, make: MakeStage | None, cost: StepCost) -> str:
    """Estimate the time of the run on this machine from a few steps."""
    settings: StageConfig = config.training.of(stage)
    if make is None:
        return "not tried: --vae or --init is missing"
    with tempfile.TemporaryDirectory() as folder:
        accelerator = start_accelerator(settings, config.training.seed)
        work = cost.flops * settings.batch_size / accelerator.num_processes
        if accelerator.device.type == "cpu" and work > SLOW:
            return f"not tried: a step of {work / 1e12:.3g} TFLOP takes a CPU too long"
        count = 2 * settings.batch_size
        if source is None:
            source = _few_scenes(config, Path(folder), count)
        few = source.latents or HeldSource(source, count)
        made = make(config, few, accelerator, Run(Path(folder) / "run", resume=False))
        seconds, steps = _timed(made, few, config)
    total = seconds * settings.max_steps
    return f"about {_long(total)}, {seconds:.3g} s a step on {accelerator.device.type}, tried for {steps} steps"


def _timed(stage: Stage, source: IndexedSource, config: Config) -> tuple[float, int]:
    """Return the seconds of a step and the number of steps tried, without the first."""
    settings = stage.config
    share = share_of(stage.accelerator, settings.batch_size, settings.gradient_accumulation)
    seed, classes = config.training.seed, config.uses_labels
    data = TrainingData(source, config.data, share, seed, images=stage.needs_images, classes=classes)
    times: list[float] = []
    while len(times) < 2 or (len(times) <= TRIAL_STEPS and sum(times) < TRIAL_SECONDS):
        began, step = time.monotonic(), settings.max_steps  # the last one, in which every loss takes part
        stage.begin(step)
        report = stage.train_step([data[step, micro] for micro in range(share.accumulation)], step)
        report.losses["loss"].item()  # waits for the device
        times.append(time.monotonic() - began)
    return float(np.median(times[1:])), len(times) - 1


def _long(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} seconds"


def _few_scenes(config: Config, folder: Path, count: int) -> Source:
    from ldm.data.scenes.dataset import ScenesDataset

    few = config.data.scenes.model_copy(update={"num": min(count, config.data.scenes.num)})
    return ScenesDataset(few, config.data.size, cache=folder, map_classes=config.data.map_classes)
