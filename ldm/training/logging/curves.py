"""The course of a run as an image: `curves.png`, drawn from `log.jsonl`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ldm.chart import Chart, Point
from ldm.storage.store import write
from ldm.training.logging.log import read_log

COLOURS = {"loss": "#2f6db5", "validation_loss": "#c8553d"}
NAMES = {"loss": "training loss, smoothed", "validation_loss": "loss of the averaged weights, fixed draw"}


def draw_curves(log: Path, out: Path) -> None:
    """Draw loss (pale, and smoothed) and validation loss over the steps; nothing where there are not two of them."""
    reports = read_log(log)
    curves = {name: _points(reports, name) for name in COLOURS}
    if len(curves["loss"]) > 1:
        image = Chart([point for points in curves.values() for point in points], "optimiser steps", "loss")
        for name, points in curves.items():
            image.curve(points, NAMES[name], COLOURS[name], smooth=name == "loss")
        write(out, lambda work: image.finished().save(work, format="png"))


def _points(reports: list[dict[str, Any]], name: str) -> list[Point]:
    return [(facts["step"], facts[name]) for facts in reports if math.isfinite(facts.get(name, math.nan))]
