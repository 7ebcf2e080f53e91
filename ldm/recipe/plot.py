"""Scores over guidance and over steps, as images."""

from __future__ import annotations

from pathlib import Path

from ldm.chart import Chart, Point
from ldm.evaluation.scenes.judging import MEASURES
from ldm.recipe.sweep import SAMPLERS, Curves, Scores
from ldm.storage.store import write

COLOURS = ("#2f6db5", "#c8553d", "#4ca63a", "#8e52cc", "#d19a1f", "#3fa7a0", "#333333")


def plot(scores: Scores, curves: Curves, folder: Path) -> None:
    """Draw `guidance.png` and `steps.png`, as far as there are two points of a curve."""
    cells = [cell for cell in curves.over_guidance() if cell.key() in scores.found]
    found: dict[str, list[Point]] = {measure: [] for measure in MEASURES}
    for cell in cells:
        results = scores.found[cell.key()]["results"]
        for measure in MEASURES:
            if f"scene_{measure}" in results:
                found[measure].append((cell.guidance, results[f"scene_{measure}"]))
    _draw(found, "guidance scale", folder / "guidance.png")
    if len(cells) == len(curves.over_guidance()):
        measured = [cell for cell in curves.over_steps(curves.best_guidance(scores)) if cell.key() in scores.found]
        by_sampler: dict[str, list[Point]] = {name: [] for name in SAMPLERS}
        for cell in measured:
            by_sampler[cell.sampler].append((cell.steps, scores.score(cell)))
        _draw(by_sampler, "steps", folder / "steps.png")


def _draw(curves: dict[str, list[Point]], across: str, out: Path) -> None:
    points = [point for curve in curves.values() for point in curve]
    if len({x for x, _ in points}) < 2:
        return
    chart = Chart(points, across, "share of images that are right")
    for (name, curve), colour in zip(curves.items(), COLOURS, strict=True):
        chart.curve(curve, name, colour, smooth=False)
    write(out, lambda work: chart.finished().save(work, format="png"))
