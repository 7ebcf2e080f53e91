"""`ldm info`."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def info(
    target: Annotated[
        str,
        typer.Argument(help="A configuration, a run, a diffusers directory, a built-in model or a .safetensors file."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document of raw numbers.")] = False,
) -> None:
    """Tell a model's size by part, its shapes, its cost and what it was trained with."""
    from ldm.info.describe import describe
    from ldm.info.report import as_text, report

    facts = report(describe(target))
    typer.echo(json.dumps(facts, indent=1) if as_json else as_text(facts))
