"""What the train-* commands share: their options, and one function that runs any stage.

A command is a function of `TrainOptions`, or of a subclass with further options, decorated with `training_command`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.config.root import Config
    from ldm.training.stages.stage import Stage, StartingPoint

VAE_HELP = "A train-vae run, a pipeline or an autoencoder's folder."


@dataclass(frozen=True)
class TrainOptions:
    """Options of all training commands, in the order of their help."""

    data: Annotated[
        str,
        typer.Option(
            help="`scenes` (built in), a folder of captioned images or of `ldm cache`, .tar shards, parquet, Hub id."
        ),
    ]
    config: Annotated[str, typer.Argument(help="A named configuration or a path to a YAML file.")] = "tiny"
    init: Annotated[str | None, typer.Option(help="Start from a trained model; ignored by a resumed run.")] = None
    out: Annotated[str | None, typer.Option(help="Folder of the run.  [default: runs/CONFIG-COMMAND]")] = None
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out, if there is one.")] = False
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps in total.")] = None
    max_time: Annotated[str | None, typer.Option(help="Stop, save and finish after a time such as 9m or 1h30m.")] = None
    batch_size: Annotated[int | None, typer.Option(help="Images per step, over all processes.")] = None
    save_every: Annotated[int | None, typer.Option(help="Optimizer steps between saves.")] = None
    seed: Annotated[int | None, typer.Option(help="Seed of all random numbers.")] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, after a few trial steps; write nothing.")
    ] = False
    gpus: Annotated[int | None, typer.Option(min=1, help="With --dry-run: estimate for this number of GPUs.")] = None
    gpu: Annotated[str | None, typer.Option(help="With --dry-run: their kind, such as a100 or h100.")] = None
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one option of the configuration.")
    ] = None

    def overrides(self, stage: str) -> list[str]:
        """Return `--set` and the options that stand for one, as overrides of the configuration."""
        section = f"training.{stage}"
        named = {f"{section}.{name}": getattr(self, name) for name in ("max_steps", "batch_size", "save_every")}
        named["training.seed"] = self.seed
        return [*(self.settings or ()), *(f"{path}={value}" for path, value in named.items() if value is not None)]


@dataclass(frozen=True)
class LatentOptions(TrainOptions):
    """Options of commands that train on the latents of an autoencoder."""

    vae: Annotated[str | None, typer.Option(help=VAE_HELP)] = None

    def overrides(self, stage: str) -> list[str]:
        """Use the latents of --data if it is a cache."""
        from ldm.data.cached import is_cache

        return [*super().overrides(stage), *[f"training.{stage}.cache_latents=true"] * is_cache(self.data)]


O = TypeVar("O", bound=TrainOptions)  # noqa: E741


def training_command(options: type[O]) -> Callable[[Callable[[O], None]], Callable[..., None]]:
    """Turn a function of an options class into a command whose parameters are the fields of the class."""
    hints = get_type_hints(options, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.name == "data" else field.default,
            annotation=hints[field.name],
        )
        for field in fields(options)
    ]

    def decorate(function: Callable[[O], None]) -> Callable[..., None]:
        @wraps(function)
        def command(**values: Any) -> None:
            function(options(**values))

        del command.__wrapped__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        return command

    return decorate


def train_stage(name: str, suffix: str, options: TrainOptions) -> None:
    """Train a stage of `ldm.registry.STAGES` as the options say; with --dry-run, print its plan.

    The run is written to `runs/CONFIG-SUFFIX` by default.
    """
    from ldm import config as configuration
    from ldm.registry import STAGES
    from ldm.training.stages.stage import StartingPoint

    stage, out = STAGES[name], Path(options.out or f"runs/{Path(options.config).stem}-{suffix}")
    config = stage.complete(configuration.load(options.config, options.overrides(name)), out)
    start = StartingPoint(options.init, getattr(options, "vae", None))
    if options.dry_run:
        _plan(stage, config, start, options)
    elif options.gpus or options.gpu:
        raise UserError("--gpus and --gpu need --dry-run, such as --dry-run --gpus 8 --gpu h100")
    else:
        _train(stage, config, start, out, options)


def _plan(stage: type[Stage], config: Config, start: StartingPoint, options: TrainOptions) -> None:
    if options.gpus and not options.gpu:
        raise UserError(f"--gpus {options.gpus} needs --gpu, their kind, such as h100")
    from ldm.training.plan import plan

    complete = not stage.on_latents or config.autoencoder.is_pixel_space or start.vae or start.init
    build = partial(stage.build, start=start) if complete else None
    typer.echo(plan(stage.name, config, options.data, build, options.gpus, options.gpu))


def _train(stage: type[Stage], config: Config, start: StartingPoint, out: Path, options: TrainOptions) -> None:
    from ldm.allocator import keep_freed_memory
    from ldm.data.sources import open_source
    from ldm.training.loop import start_accelerator, train
    from ldm.training.runs.run import Run
    from ldm.training.runs.stop import Limits, parse_duration

    limits = Limits(parse_duration(options.max_time) if options.max_time else None)
    run = Run(out, options.resume)
    stage.check(config, run, start)
    keep_freed_memory()
    accelerator = start_accelerator(config.training.of(stage.name), config.training.seed, config.training.trackers, out)
    with accelerator.main_process_first():  # the others find what one process rendered or downloaded
        source = open_source(options.data, config.data)
    train(stage.build(config, source, accelerator, run, start), source, config, run, limits)
    accelerator.end_training()
