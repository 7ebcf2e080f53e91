"""`ldm train-vae`, `ldm train-unet` and `ldm train-classifier`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldm.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ldm.config.root import Config
    from ldm.data.sources import Source
    from ldm.training.runs.run import Run
    from ldm.training.stages.stage import Stage

ConfigArgument = Annotated[str, typer.Argument(help="A named configuration or a path to a YAML file.")]
Data = Annotated[
    str,
    typer.Option(
        help="`scenes` (built in), a folder of captioned images or of `ldm cache`, .tar shards, parquet, or a Hub id."
    ),
]
Init = Annotated[str | None, typer.Option(help="Start from a trained model; a resumed run has started already.")]
Out = Annotated[str | None, typer.Option(help="The run's folder.  [default: runs/CONFIG-vae, -unet or -classifier]")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out; an empty folder starts afresh.")]
MaxSteps = Annotated[int | None, typer.Option(help="Optimiser steps in total.")]
MaxTime = Annotated[str | None, typer.Option(help="Stop, save and finish after this long, such as 9m or 1h30m.")]
BatchSize = Annotated[int | None, typer.Option(help="Images in a step, all processes together.")]
SaveEvery = Annotated[int | None, typer.Option(help="Optimiser steps between saves.")]
Seed = Annotated[int | None, typer.Option(help="Of everything random.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan, after a few trial steps; write nothing.")]
Gpus = Annotated[int | None, typer.Option(min=1, help="With --dry-run: the cost on so many GPUs.")]
Gpu = Annotated[str | None, typer.Option(help="With --dry-run: their kind, such as a100 or h100.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one option of the configuration.")
]


def train_vae(
    data: Data,
    config: ConfigArgument = "tiny",
    init: Init = None,
    out: Out = None,
    resume: Resume = False,
    max_steps: MaxSteps = None,
    max_time: MaxTime = None,
    batch_size: BatchSize = None,
    save_every: SaveEvery = None,
    seed: Seed = None,
    dry_run: DryRun = False,
    gpus: Gpus = None,
    gpu: Gpu = None,
    settings: Set = None,
) -> None:
    """Train an autoencoder on images."""
    loaded = _config(config, settings, "autoencoder", max_steps, batch_size, save_every, seed)
    path = Path(out or f"runs/{Path(config).stem}-vae")
    if dry_run or gpus or gpu:
        _plan("autoencoder", loaded, data, path, dry_run, gpus, gpu, init=init)
        return
    _train("autoencoder", loaded, data, path, resume, max_time, init=init)


def train_unet(
    data: Data,
    config: ConfigArgument = "tiny",
    vae: Annotated[str | None, typer.Option(help="A train-vae run, a pipeline or an autoencoder's folder.")] = None,
    init: Init = None,
    out: Out = None,
    resume: Resume = False,
    max_steps: MaxSteps = None,
    max_time: MaxTime = None,
    batch_size: BatchSize = None,
    save_every: SaveEvery = None,
    seed: Seed = None,
    dry_run: DryRun = False,
    gpus: Gpus = None,
    gpu: Gpu = None,
    settings: Set = None,
) -> None:
    """Train a U-Net, and what tells it of text or classes, on latents or pixels."""
    loaded = _config(config, _with_cache(settings, data, "unet"), "unet", max_steps, batch_size, save_every, seed)
    path = Path(out or f"runs/{Path(config).stem}-unet")
    if dry_run or gpus or gpu:
        _plan("unet", loaded, data, path, dry_run, gpus, gpu, vae=vae, init=init)
        return
    _train("unet", loaded, data, path, resume, max_time, vae=vae, init=init)


def train_classifier(
    data: Data,
    config: ConfigArgument = "classifier",
    vae: Annotated[str | None, typer.Option(help="A train-vae run, a pipeline or an autoencoder's folder.")] = None,
    init: Init = None,
    out: Out = None,
    resume: Resume = False,
    max_steps: MaxSteps = None,
    max_time: MaxTime = None,
    batch_size: BatchSize = None,
    save_every: SaveEvery = None,
    seed: Seed = None,
    dry_run: DryRun = False,
    gpus: Gpus = None,
    gpu: Gpu = None,
    settings: Set = None,
) -> None:
    """Train a classifier on noisy latents, which guides images to a class (ldm generate --classifier)."""
    loaded = _config(
        config, _with_cache(settings, data, "classifier"), "classifier", max_steps, batch_size, save_every, seed
    )
    path = Path(out or f"runs/{Path(config).stem}-classifier")
    if dry_run or gpus or gpu:
        _plan("classifier", loaded, data, path, dry_run, gpus, gpu, vae=vae, init=init)
        return
    _train("classifier", loaded, data, path, resume, max_time, vae=vae, init=init)


def _with_cache(settings: list[str] | None, data: str, stage: str) -> list[str]:
    """The overrides, and where the data is a cache the one that says so."""
    from ldm.data.cached import is_cache

    return [*(settings or []), *[f"training.{stage}.cache_latents=true"] * is_cache(data)]


def _config(
    name: str,
    settings: list[str] | None,
    stage: str,
    max_steps: int | None,
    batch_size: int | None,
    save_every: int | None,
    seed: int | None,
) -> Config:
    """The configuration with the command's own options as the last overrides."""
    from ldm import config

    overrides = list(settings or [])
    for option, value in (("max_steps", max_steps), ("batch_size", batch_size), ("save_every", save_every)):
        if value is not None:
            overrides.append(f"training.{stage}.{option}={value}")
    if seed is not None:
        overrides.append(f"training.seed={seed}")
    loaded = config.load(name, overrides)
    if stage == "autoencoder":  # which is told no maps
        return loaded.model_copy(update={"data": loaded.data.model_copy(update={"map_classes": None})})
    return loaded


def _plan(
    stage: str,
    config: Config,
    data: str,
    out: Path,
    dry_run: bool,
    gpus: int | None,
    gpu: str | None,
    **starting_points: Any,
) -> None:
    if not dry_run or (gpus and not gpu):
        raise UserError("--gpus and --gpu go together with --dry-run: such as --dry-run --gpus 8 --gpu h100")
    from ldm.training.plan import plan
    from ldm.training.runs.run import with_text_source

    if stage == "unet":
        config = with_text_source(config, out)
    ready = stage == "autoencoder" or config.autoencoder.is_pixel_space or any(starting_points.values())
    make = partial(_stage, stage, **starting_points) if ready else None
    typer.echo(plan(stage, config, data, make, gpus, gpu))


def _stage(name: str, config: Config, source: Source, accelerator: Accelerator, run: Run, **starting: Any) -> Stage:
    """The stage as its command makes it."""
    from ldm.training.stages import build

    if name == "autoencoder":
        return build.autoencoder_stage(config, source, accelerator, **starting)
    make = build.unet_stage if name == "unet" else build.classifier_stage
    return make(config, source, accelerator, run, **starting)


def _train(
    stage_name: str,
    config: Config,
    data: str,
    out: Path,
    resume: bool,
    max_time: str | None,
    **starting_points: Any,
) -> None:
    from ldm.training.runs.stop import Limits, parse_duration

    limits = Limits(parse_duration(max_time) if max_time else None)
    from ldm.allocator import keep_freed_memory
    from ldm.data.sources import open_source
    from ldm.training.loop import start_accelerator, train
    from ldm.training.runs.run import Run, with_text_source
    from ldm.training.stages import build

    if stage_name == "unet":
        config = with_text_source(config, out)
    run = Run(out, resume)
    build.check(stage_name, config, run, **starting_points)
    settings = getattr(config.training, stage_name)
    keep_freed_memory()
    accelerator = start_accelerator(settings, config.training.seed, config.training.trackers, out)
    with accelerator.main_process_first():  # one process renders or downloads, the others find it done
        source = open_source(data, config.data)
    train(_stage(stage_name, config, source, accelerator, run, **starting_points), source, config, run, limits)
    accelerator.end_training()
