"""`ldm info`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ldm.errors import UserError
from ldm.processes import ProcessShare

Target = Annotated[
    str,
    typer.Argument(help="A configuration, a run, a diffusers directory, a built-in model, .safetensors or a .png."),
]


def info(
    target: Target,
    measure: Annotated[
        str | None, typer.Option(metavar="DATA", help="Measure the autoencoder's latent statistics on this data.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=2, help="Images for --measure.  [default: 4096]")] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write the measured statistics to the autoencoder's folder.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document of raw numbers.")] = False,
) -> None:
    """Show a model's parameters by part, shapes, cost, latent statistics and training."""
    if measure is None and (write or images is not None):
        raise UserError("--write and --images need --measure DATA")
    if Path(target).suffix.lower() == ".png":
        _show_parameters(Path(target).expanduser(), as_json)
        return
    from ldm.info.describe import describe
    from ldm.info.report import report
    from ldm.info.text import as_text

    share, measured = ProcessShare.of_environment(), {}
    if measure is not None:
        from ldm.info.measure import measure as measure_latents

        measured = {"measured": measure_latents(describe(target), measure, images or 4096, write)}
    facts = report(describe(target)) | measured
    if share.is_first:
        typer.echo(json.dumps(facts, indent=1) if as_json else as_text(facts))
    if measured:
        share.leave()


def _show_parameters(path: Path, as_json: bool) -> None:
    """Print the parameters in an image's metadata."""
    from ldm.generation.metadata import read_parameters

    facts = read_parameters(path)
    width = max(map(len, facts))
    lines = [f"{name:<{width}}  {value}" for name, value in facts.items()]
    typer.echo(json.dumps(facts, indent=1) if as_json else "\n".join(lines))
