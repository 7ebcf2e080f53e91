"""`ldm data`: data sets to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(help="Make data sets.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """Make data sets."""


@app.command()
def scenes(
    out: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    num: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 10_000,
    size: Annotated[int, typer.Option(min=1, help="Side of the images, pixels.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random generators.")] = 0,
    split: Annotated[
        Literal["train", "test"], typer.Option(help="train never contains the pairs of things in test.")
    ] = "train",
    format: Annotated[  # noqa: A002 - the option's name
        Literal["folder", "webdataset"],
        typer.Option(help="folder: PNG files and metadata.jsonl for Hugging Face datasets; webdataset: tar shards."),
    ] = "folder",
    concepts: Annotated[
        int | None, typer.Option(min=1, help="Use only this many, the most recognisable concepts.  [default: all]")
    ] = None,
    maps: Annotated[
        bool,
        typer.Option("--maps", help="Also write segmentation maps: image.map.png or .map.png."),
    ] = False,
) -> None:
    """Write the built-in data set: scenes of emoji with captions, such as a panda playing a trumpet."""
    from ldm.data.scenes import write_folder, write_webdataset

    write = write_folder if format == "folder" else write_webdataset
    write(out, num, size, seed, split, concepts=concepts, maps=maps)
    typer.echo(f"{num} scenes in {out}")
