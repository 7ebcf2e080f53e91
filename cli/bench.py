"""`ldm bench`."""

from __future__ import annotations

import gc
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ldm.allocator import keep_freed_memory
from ldm.cli.output import check_writable
from ldm.errors import UserError

if TYPE_CHECKING:
    import torch

    from ldm.bench.machine import Peaks
    from ldm.bench.runner import Row
    from ldm.bench.workload import Maker

WIDTH = 140  # columns of the table without a terminal

Against = Annotated[
    str | None, typer.Option(metavar="diffusers", help="What to measure beside ours, in turns.", show_default=False)
]
Only = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Measure this row only; repeatable. `--only list` lists the rows."),
]
Runs = Annotated[
    int | None,
    typer.Option(min=1, help="Counted runs of each side.  [default: 7, or down to 3 in long rows]"),
]
Plot = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Only measure how time grows with steps, images and size, and plot it as a PNG."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document: a list with an object per row.")]


def bench(
    against: Against = None, only: Only = None, runs: Runs = None, plot: Plot = None, as_json: AsJson = False
) -> None:
    """Measure this machine's speed at sampling, decoding and training, alone or compared with diffusers."""
    check_against(against)
    if plot is not None:
        if against is not None or only or as_json:
            raise UserError("--plot measures no rows: remove --against, --only and --json")
        check_writable([plot])
        plot_growth(plot, runs)
        return
    from ldm.bench.machine import describe, measure_peaks
    from ldm.bench.rows import chosen
    from ldm.devices import find_device

    makers, device = chosen(only or []), find_device()
    peaks = measure_peaks(device)
    rows = []
    for number, (name, maker) in enumerate(makers.items(), start=1):
        print(f"{number} of {len(makers)}: {name}", file=sys.stderr)
        rows.append(measure_row(name, maker, against is not None, runs, peaks, device))
    if as_json:
        typer.echo(json.dumps([row.as_dict() for row in rows], indent=1))
    else:
        typer.echo(f"{describe(device)}: {format_peaks(peaks)}")
        show(rows)


def plot_growth(out: Path, runs: int | None) -> None:
    """Measure the growth of time, print it and plot it."""
    from ldm.bench.growth import AXES, NAMES, draw_growth, measure_growth
    from ldm.devices import find_device

    curves = measure_growth("bench/small", find_device(), runs or 3)
    for axis, found in zip(AXES, curves, strict=True):
        for dtype, line in found.items():
            values = ", ".join(f"{place:.0f}: {seconds:.3f} s" for place, seconds in line)
            typer.echo(f"{axis.across}, {NAMES[dtype]}: {values}")
    draw_growth(curves, out)
    typer.echo(out)


def check_against(against: str | None) -> None:
    """Raise UserError unless there is something to compare with."""
    if against not in (None, "diffusers"):
        raise UserError(f"--against {against}: only diffusers is supported")
    if against is not None and find_spec("diffusers") is None:
        raise UserError("--against diffusers: it is not installed; pip install diffusers, or remove --against")


def measure_row(name: str, maker: Maker, against: bool, runs: int | None, peaks: Peaks, device: torch.device) -> Row:
    """Measure one workload and free its memory."""
    from ldm.bench.runner import measure

    workload = maker(against)
    try:
        return measure(name, workload, runs, peaks, device, set_up_allocator)
    finally:
        workload.close()
        del workload
        gc.collect()


def set_up_allocator(side: str) -> None:
    """Set up the C library's allocator as `ldm` does for ours, and as in a plain script for others."""
    from ldm.bench.memory import reset_allocator

    if side in ("ours", "tiled"):
        keep_freed_memory()
    else:
        reset_allocator()


def format_peaks(peaks: Peaks) -> str:
    """Format the machine's rates on one line."""
    from ldm.bench.machine import TYPES

    rates = (
        f"{name} {peaks.matrix[dtype] / 1e9:,.0f} matrix, {peaks.convolution[dtype] / 1e9:,.0f} 3x3 convolution"
        for name, dtype in TYPES.items()
        if dtype in peaks.matrix
    )
    return f"GFLOP/s at best: {'; '.join(rates)}"


def show(rows: list[Row]) -> None:
    """Print the rows as a table without empty columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    shown = [cells(row) for row in rows]
    columns = [name for name in shown[0] if any(each[name] for each in shown)]
    table.add_column("row", min_width=max(len(row.name) for row in rows))
    for name in columns[1:]:
        table.add_column(name, justify="right", overflow="fold")
    for each in shown:
        table.add_row(*(each[name] for name in columns))
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)


def cells(row: Row) -> dict[str, str]:
    """Format a row by column; other sides have milliseconds and their ratio to ours."""
    facts = row.as_dict()

    def number(name: str, form: str) -> str:
        value = facts.get(name)
        return "" if value is None else format(value, form)

    def beside(side: str, ratio: str) -> str:
        return f"{number(side, ',.0f')} ({number(ratio, '.2f')})" if side in facts else ""

    held = [number(f"{side}_peak_mib", ",.0f") for side in ("ours", "tiled", "theirs")]
    return {
        "row": row.name,
        "ours, ms": number("ours_ms", ",.0f"),
        "diffusers": beside("theirs_ms", "ratio"),
        "tuned": beside("tuned_ms", "tuned_ratio"),
        "in bf16": beside("theirs_bf16_ms", "theirs_bf16_ratio"),
        "error": number("error", ".1e"),
        "its bf16's": number("theirs_bf16_error", ".1e"),
        "of peak": number("share_of_peak", ".0%"),
        "MiB": held[0],
        "tiled": held[1],
        "diffusers'": held[2],
    }
