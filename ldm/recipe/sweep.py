"""Measurements of a model: scores over guidance and over steps, and all metrics on the test prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ldm.data.scenes import ScenesConfig, ScenesDataset
from ldm.evaluation.evaluate import evaluate
from ldm.evaluation.features import OFFLINE
from ldm.evaluation.plan import IN_FEATURES, Plan
from ldm.generation import Request, TextToImage

GUIDANCE = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
STEPS = (5, 10, 20, 30, 50)
SAMPLERS = ("ddim", "dpmpp-2m", "unipc", "heun", "plms", "ddpm", "dpmpp-2m-sde")
CHOOSING_SEED, TEST_SEED = 1, 0  # seeds of the scenes that guidance is chosen on, and of the test scenes
JUDGED_BY = "scene_whole"


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    name: str  # of the curve that it is a point of, or "test"
    guidance: float
    steps: int
    sampler: str
    samples: int
    seed: int  # of the scenes
    metrics: tuple[str, ...] = ("scenes",)

    def key(self) -> str:
        """Return the key in `scores.jsonl`."""
        return json.dumps(asdict(self), sort_keys=True)


class Scores:
    """Finished measurements in a file, one JSON line each; they are not repeated."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.found: dict[str, dict[str, Any]] = {row["cell"]: row["report"] for row in map(json.loads, lines)}

    def add(self, cell: Cell, report: dict[str, Any]) -> None:
        """Append a cell's report to the file."""
        self.found[cell.key()] = report
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"cell": cell.key(), "report": report}) + "\n")

    def score(self, cell: Cell) -> float:
        """Return the score that cells are compared by."""
        return float(self.found[cell.key()]["results"][JUDGED_BY])


@dataclass(frozen=True)
class Curves:
    """The measurements, in order: over guidance scales, on the test scenes, over steps."""

    samples: int  # of the test
    curve_samples: int  # of each other cell
    metrics: tuple[str, ...]  # of the test

    def over_guidance(self) -> list[Cell]:
        """Return the cells over guidance, with 30 steps of DDIM."""
        return [Cell("guidance", scale, 30, "ddim", self.curve_samples, CHOOSING_SEED) for scale in GUIDANCE]

    def test(self, guidance: float) -> Cell:
        """Return the measurement on the test split."""
        return Cell("test", guidance, 30, "ddim", self.samples, TEST_SEED, self.metrics)

    def over_steps(self, guidance: float) -> list[Cell]:
        """Return the cells over steps, for every sampler."""
        return [
            Cell("steps", guidance, steps, sampler, self.curve_samples, CHOOSING_SEED)
            for steps in STEPS
            for sampler in SAMPLERS
        ]

    def best_guidance(self, scores: Scores) -> float:
        """Return the guidance scale with the highest score, the smallest if several are equal."""
        return max(self.over_guidance(), key=lambda cell: (scores.score(cell), -cell.guidance)).guidance

    def missing(self, scores: Scores) -> Iterator[Cell]:
        """Yield the cells to measure, in order; later ones depend on the scores of the first."""
        yield from (cell for cell in self.over_guidance() if cell.key() not in scores.found)
        best = self.best_guidance(scores)
        rest = [self.test(best), *self.over_steps(best)]
        yield from (cell for cell in rest if cell.key() not in scores.found)


def measure(cell: Cell, pipe: TextToImage, concepts: int | None, size: int, batch_size: int) -> dict[str, Any]:
    """Measure a cell; return the report as `ldm evaluate` writes it."""
    scenes = ScenesConfig(num=cell.samples, seed=cell.seed, concepts=concepts)
    source = ScenesDataset(scenes, size, "test")
    plan = Plan(
        metrics=cell.metrics,
        samples=cell.samples,
        sampling=Request(
            guidance_scale=cell.guidance, num_inference_steps=cell.steps, sampler=cell.sampler, seed=cell.seed
        ),
        features=OFFLINE if set(cell.metrics) & set(IN_FEATURES) else None,
        batch_size=batch_size,
    )
    return evaluate(pipe, source, plan).as_dict()
