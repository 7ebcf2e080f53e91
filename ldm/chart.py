"""Line charts as PNG files, plotted with matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.storage.store import write

Point = tuple[float, float]
DPI = 100


@dataclass(frozen=True)
class Line:
    """A named line; `smooth` plots a moving average over the pale raw values, which suits noisy ones."""

    name: str
    points: Sequence[Point]
    smooth: bool = False


@dataclass(frozen=True)
class Panel:
    """A plot with axes. The y axis is logarithmic if positive values span more than a factor of 5."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    from_zero: bool = False  # linear axes that begin at 0


def write_chart(path: Path, panels: Sequence[Panel], size: tuple[int, int] = (900, 420)) -> None:
    """Write panels side by side as a PNG; `size` is the width and height of each in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((len(panels) * size[0] / DPI, size[1] / DPI), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)  # outside pyplot, whose figures must be closed
    for number, panel in enumerate(panels, 1):
        _plot(figure.add_subplot(1, len(panels), number), panel)
    write(path, lambda work: figure.savefig(work, format="png"))


def _plot(axes: Any, panel: Panel) -> None:
    for number, line in enumerate(filter(lambda line: line.points, panel.lines)):
        places, values = zip(*line.points, strict=True)
        if line.smooth:
            axes.plot(places, values, color=f"C{number}", alpha=0.3, linewidth=1)
            axes.plot(places, smoothed(values), color=f"C{number}", linewidth=2, label=f"{line.name}, smoothed")
        else:
            axes.plot(places, values, color=f"C{number}", linewidth=2, marker="o", markersize=4, label=line.name)
    heights = [value for line in panel.lines for _, value in line.points]
    if panel.from_zero:
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    elif min(heights) > 0 and max(heights) > 5 * min(heights):
        axes.set_yscale("log")
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def smoothed(values: Sequence[float]) -> list[float]:
    """Average values in both directions, with weights that fall by e over a thirtieth of the curve."""
    forward, backward = _averages(values), _averages(values[::-1])[::-1]
    return [(a + b) / 2 for a, b in zip(forward, backward, strict=True)]


def _averages(values: Sequence[float]) -> list[float]:
    """Return exponential moving averages, unbiased at the start."""
    keep = math.exp(-30 / max(len(values), 60))
    total = weight = 0.0
    means = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        means.append(total / weight)
    return means
