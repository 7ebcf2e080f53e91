"""`ldm convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[
    str, typer.Argument(metavar="SRC", help="A single file (.safetensors, .ckpt), a model's folder or its name.")
]
Destination = Annotated[
    Path, typer.Argument(metavar="DST", help="A new single file, ending in .safetensors, or a new folder.")
]
ConfigFile = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help="Of the single file SRC: ours, or the original's YAML.")
]
Format = Annotated[
    str | None, typer.Option("--format", help="diffusers or compvis.  [default: what the name of DST says]")
]
Ema = Annotated[bool, typer.Option("--ema", help="Take the average of the weights that SRC has kept.")]
TokenizerFolder = Annotated[
    str | None,
    typer.Option("--tokenizer", metavar="FOLDER", help="A folder or Hub id of SRC's tokenizer, which no file holds."),
]
OriginalConfig = Annotated[
    bool, typer.Option("--original-config", help="Write the original's YAML beside a single file DST.")
]


def convert(
    src: Source,
    dst: Destination,
    config: ConfigFile = None,
    format: Format = None,  # noqa: A002 (the option's name)
    ema: Ema = False,
    tokenizer: TokenizerFolder = None,
    original_config: OriginalConfig = False,
) -> None:
    """Bring a model from one format to another: folders as diffusers has them, single files as ComfyUI loads them."""
    from ldm.checkpoint.compvis.convert import Conversion
    from ldm.checkpoint.compvis.convert import convert as write

    for path in write(src, dst, Conversion(config, format, ema, tokenizer, original_config)):
        typer.echo(path)
