"""Charts of scores over guidance and over steps."""

from __future__ import annotations

from pathlib import Path

from ldm.chart import Line, Panel, Point, write_chart
from ldm.evaluation.scenes.judging import MEASURES
from ldm.recipe.sweep import SAMPLERS, Curves, Scores


def plot(scores: Scores, curves: Curves, folder: Path) -> None:
    """Write `guidance.png` and `steps.png` as soon as they have two points."""
    cells = [cell for cell in curves.over_guidance() if cell.key() in scores.found]
    by_measure: dict[str, list[Point]] = {measure: [] for measure in MEASURES}
    for cell in cells:
        results = scores.found[cell.key()]["results"]
        for measure in MEASURES:
            if f"scene_{measure}" in results:
                by_measure[measure].append((cell.guidance, results[f"scene_{measure}"]))
    _plot(by_measure, "guidance scale", folder / "guidance.png")
    if len(cells) == len(curves.over_guidance()):
        by_sampler: dict[str, list[Point]] = {name: [] for name in SAMPLERS}
        for cell in curves.over_steps(curves.best_guidance(scores)):
            if cell.key() in scores.found:
                by_sampler[cell.sampler].append((cell.steps, scores.score(cell)))
        _plot(by_sampler, "sampling steps", folder / "steps.png")


def _plot(points: dict[str, list[Point]], x_label: str, out: Path) -> None:
    if len({x for line in points.values() for x, _ in line}) > 1:
        lines = [Line(name, line) for name, line in points.items()]
        write_chart(out, [Panel(f"Scene scores over {x_label}", x_label, "share of correct images", lines)])
