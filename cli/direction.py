"""`ldm direction`: what two groups of images differ in, done to another image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ldm.cli.output import IMAGE_SUFFIXES, check_writable
from ldm.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

app = typer.Typer(help="Directions in latents: what two groups of images differ in, done to another image.")

Model = Annotated[str, typer.Option(help="A run, a diffusers directory, a Hub id or a built-in model.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...  [default: a GPU if there is one]")]


@app.command()
def find(
    first: Annotated[Path, typer.Argument(metavar="FROM", help="A folder of images.")],
    second: Annotated[Path, typer.Argument(metavar="TO", help="A folder of images that differ from them.")],
    out: Annotated[Path, typer.Option(help="The direction's file.")] = Path("direction.safetensors"),
    model: Model = "emoji",
    strength: Annotated[float, typer.Option(help="How far towards noise the images are taken, 0 to 1.")] = 0.7,
    steps: Annotated[int, typer.Option(help="Steps from an image all the way to noise.")] = 30,
    prompt: Annotated[str, typer.Option(help="What all the images show.")] = "",
    device: Device = None,
) -> None:
    """Find the direction from one group of images to another."""
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: give a file that ends in .safetensors")
    check_writable([out])
    start, end = _images(first), _images(second)

    from ldm.allocator import keep_freed_memory
    from ldm.generation import TextToImage, directions

    keep_freed_memory()
    way = directions.InversionSettings(strength, steps, prompt)
    directions.find(TextToImage.from_pretrained(model, device=device), start, end, way).save(out)
    typer.echo(out)


@app.command()
def apply(
    direction: Annotated[Path, typer.Argument(metavar="DIRECTION", help="What `ldm direction find` wrote.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="The images to move.")],
    amount: Annotated[
        list[float] | None,
        typer.Option(help="How far: 1 is the groups' distance, 0 stays; for each one more.  [default: 1]"),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="An image; with several images or amounts a sheet, a row each, itself first.")
    ] = Path("moved.png"),
    model: Model = "emoji",
    device: Device = None,
) -> None:
    """Move images along a direction."""
    if out.suffix.lower() not in IMAGE_SUFFIXES:
        raise UserError(f"--out {out}: give an image's file, such as moved.png")
    check_writable([out])

    from ldm.allocator import keep_freed_memory
    from ldm.data.images import contact_sheet, read_image
    from ldm.generation import TextToImage, directions

    keep_freed_memory()
    found, given, amounts = directions.Direction.load(direction), list(map(read_image, images)), amount or [1.0]
    pipe = TextToImage.from_pretrained(model, device=device)
    rows = [directions.moved(pipe, image, found, amounts) for image in given]
    if len(given) == len(amounts) == 1:
        [[made]] = rows
    else:
        shown = [[directions.seen(pipe, image, found.way), *row] for image, row in zip(given, rows, strict=True)]
        made = contact_sheet([image for row in shown for image in row], columns=1 + len(amounts))
    try:
        made.save(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    typer.echo(out)


def _images(folder: Path) -> list[Image.Image]:
    """All images that lie in a folder; UserError if there are none."""
    from ldm.data.images import read_image

    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of images")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise UserError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return [read_image(path) for path in paths]
