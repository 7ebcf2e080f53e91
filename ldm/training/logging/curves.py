"""`curves.png`: losses over the steps of a run."""

from __future__ import annotations

import math
from pathlib import Path

from ldm.chart import Line, Panel, write_chart
from ldm.training.logging.log import read_log

NAMES = {"loss": "training loss", "validation_loss": "validation loss of the averaged weights"}


def plot_curves(log: Path, out: Path) -> None:
    """Plot training and validation loss; write nothing if the log has less than two reports."""
    reports = read_log(log)
    lines = [
        Line(
            label,
            [(facts["step"], facts[name]) for facts in reports if math.isfinite(facts.get(name, math.nan))],
            smooth=name == "loss",
        )
        for name, label in NAMES.items()
    ]
    if len(lines[0].points) > 1:
        write_chart(out, [Panel(f"Loss of {log.absolute().parent.name}", "optimizer step", "loss", lines)])
