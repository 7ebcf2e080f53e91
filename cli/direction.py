"""`ldm direction`: what two groups of pictures differ in, done to another picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ldm.cli.output import PICTURE_SUFFIXES, check_writable
from ldm.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

app = typer.Typer(help="Directions in latents: what two groups of pictures differ in, done to another picture.")

Model = Annotated[str, typer.Option(help="A run, a diffusers directory, a Hub id or a built-in model.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...  [default: a GPU if there is one]")]


@app.command()
def find(
    first: Annotated[Path, typer.Argument(metavar="FROM", help="A folder of pictures.")],
    second: Annotated[Path, typer.Argument(metavar="TO", help="A folder of pictures that differ from them.")],
    out: Annotated[Path, typer.Option(help="The direction's file.")] = Path("direction.safetensors"),
    model: Model = "emoji",
    strength: Annotated[float, typer.Option(help="How far towards noise the pictures are taken, 0 to 1.")] = 0.7,
    steps: Annotated[int, typer.Option(help="Steps from a picture all the way to noise.")] = 30,
    prompt: Annotated[str, typer.Option(help="What all the pictures show.")] = "",
    device: Device = None,
) -> None:
    """Find the direction from one group of pictures to another."""
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: give a file that ends in .safetensors")
    check_writable([out])
    start, end = _pictures(first), _pictures(second)

    from ldm.allocator import keep_freed_memory
    from ldm.pipeline import TextToImage, directions

    keep_freed_memory()
    way = directions.Way(strength, steps, prompt)
    directions.find(TextToImage.from_pretrained(model, device=device), start, end, way).save(out)
    typer.echo(out)


@app.command()
def apply(
    direction: Annotated[Path, typer.Argument(metavar="DIRECTION", help="What `ldm direction find` wrote.")],
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE...", help="The pictures to move.")],
    amount: Annotated[
        list[float] | None,
        typer.Option(help="How far: 1 is the groups' distance, 0 stays; for each one more.  [default: 1]"),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="A picture; with several pictures or amounts a sheet, a row each, itself first.")
    ] = Path("moved.png"),
    model: Model = "emoji",
    device: Device = None,
) -> None:
    """Move pictures along a direction."""
    if out.suffix.lower() not in PICTURE_SUFFIXES:
        raise UserError(f"--out {out}: give a picture's file, such as moved.png")
    check_writable([out])

    from ldm.allocator import keep_freed_memory
    from ldm.data.pictures import contact_sheet, read_picture
    from ldm.pipeline import TextToImage, directions

    keep_freed_memory()
    found, given, amounts = directions.Direction.load(direction), list(map(read_picture, pictures)), amount or [1.0]
    pipe = TextToImage.from_pretrained(model, device=device)
    rows = [directions.moved(pipe, picture, found, amounts) for picture in given]
    if len(given) == len(amounts) == 1:
        [[made]] = rows
    else:
        shown = [[directions.seen(pipe, picture, found.way), *row] for picture, row in zip(given, rows, strict=True)]
        made = contact_sheet([image for row in shown for image in row], columns=1 + len(amounts))
    try:
        made.save(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    typer.echo(out)


def _pictures(folder: Path) -> list[Image.Image]:
    """All pictures that lie in a folder; UserError if there are none."""
    from ldm.data.pictures import read_picture

    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of pictures")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
    if not paths:
        raise UserError(f"{folder} holds no pictures ({', '.join(PICTURE_SUFFIXES)})")
    return [read_picture(path) for path in paths]
