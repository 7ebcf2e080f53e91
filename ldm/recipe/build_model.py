"""Train, evaluate and export the built-in model; each part resumes where the previous command stopped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ldm.checkpoint.diffusers.pipeline import load_pipeline, save_pipeline
from ldm.checkpoint.find import find_model
from ldm.config.root import Config
from ldm.config.training import StageConfig
from ldm.data.images import contact_sheet
from ldm.data.scenes import ScenesDataset
from ldm.data.sources import Source
from ldm.generation import TextToImage
from ldm.recipe.plot import plot
from ldm.recipe.rendering import Rendering, first_scenes
from ldm.recipe.sweep import Curves, Scores, measure
from ldm.recipe.timetable import OutOfTimeError, Timetable
from ldm.registry import STAGES
from ldm.storage.store import save_json
from ldm.training.loop import start_accelerator, train
from ldm.training.runs.run import Run
from ldm.training.runs.stop import Limits
from ldm.training.stages.stage import Stage, StartingPoint

GRID_COLUMNS = 6


@dataclass(frozen=True)
class Order:
    """What to train and evaluate, and where to write it."""

    config: Config
    out: Path
    curves: Curves
    prompts: tuple[str, ...]  # of the grid
    shard_size: int  # bytes of a file of weights, at most
    batch_size: int  # of generated images

    @property
    def model(self) -> Path:
        """The finished model, float16."""
        return self.out / "model"


def make(order: Order, times: Timetable) -> bool:
    """Run the missing parts; return False if this command's time ended first."""
    rendering: Rendering | None = None
    try:
        with times.part("autoencoder"):
            first = first_scenes(order.config.data)
            rendering = Rendering(order.config.data)
            _train("autoencoder", order, first, times)
        with times.part("unet"):
            rendering.wait(times.until_end())
            scenes = ScenesDataset(order.config.data.scenes, order.config.data.size)
            _train("unet", order, scenes, times)
        with times.part("scores"):
            _score(order, times)
    except (OutOfTimeError, TimeoutError):
        return False
    finally:
        if rendering is not None:
            rendering.end()
        _export(order)
    return True


def _train(name: str, order: Order, source: Source, times: Timetable) -> None:
    """Continue training a stage.

    Raises:
        OutOfTimeError: if it does not reach its end.
    """
    config, settings = order.config, order.config.training.of(name)
    run = Run(order.out / name, resume=True)
    marker = run.path / "budget.json"
    if _finished(run, settings, marker):
        return
    times.until_end()
    kind: type[Stage] = STAGES[name]
    start = StartingPoint(vae=str(order.out / "autoencoder") if kind.on_latents else None)
    kind.check(config, run, start)
    accelerator = start_accelerator(settings, config.training.seed)
    stage = kind.build(config, source, accelerator, run, start)
    budget = times.budget(name, _trained(run))
    train(stage, source, config, run, Limits(times.left(), budget))
    accelerator.end_training()
    if budget is not None and _trained(run) >= budget:
        save_json(marker, {"seconds": budget})
    if not _finished(run, settings, marker):
        raise OutOfTimeError


def _trained(run: Run) -> float:
    """Return the seconds of training so far."""
    steps = run.steps()
    return float(run.facts(steps[-1]).get("seconds", 0.0)) if steps else 0.0


def _finished(run: Run, settings: StageConfig, marker: Path) -> bool:
    """Return whether all steps are done or their time is spent."""
    steps = run.steps()
    return marker.is_file() or (bool(steps) and int(steps[-1].name.removeprefix("step-")) >= settings.max_steps)


def _export(order: Order) -> None:
    """Write the newest model in half precision."""
    run = order.out / "unet"
    if not run.is_dir() or not Run(run, resume=True).steps():
        return
    save_pipeline(load_pipeline(find_model(str(run)), torch.float32), order.model, torch.float16, order.shard_size)


def _score(order: Order, times: Timetable) -> None:
    """Measure what is missing, then plot the curves and generate the grid of prompts."""
    _export(order)
    scores, config = Scores(order.out / "scores.jsonl"), order.config
    pipe = TextToImage.from_pretrained(order.model)
    for cell in order.curves.missing(scores):
        times.until_end()
        print(f"measuring {cell.key()}", flush=True)
        scores.add(cell, measure(cell, pipe, config.data.scenes.concepts, config.data.size, order.batch_size))
        plot(scores, order.curves, order.out)
    best = order.curves.best_guidance(scores)
    report = scores.found[order.curves.test(best).key()]
    save_json(order.out / "report.json", report | {"guidance": best, "seconds": times.spent})
    if order.prompts:
        images = [
            pipe(prompt, guidance_scale=best, num_inference_steps=30, seed=seed)[0]
            for seed, prompt in enumerate(order.prompts)
        ]
        contact_sheet(images, GRID_COLUMNS).save(order.out / "grid.png")
