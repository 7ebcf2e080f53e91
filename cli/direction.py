"""`ldm direction`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ldm.cli.options import Device, Model
from ldm.cli.output import FOLDER, IMAGE_SUFFIXES, check_writable, make_folder, new_file
from ldm.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

app = typer.Typer(help="Apply the difference between two groups of images to other images.")


@app.command()
def find(
    first: Annotated[Path, typer.Argument(metavar="FROM", help="A folder of images.")],
    second: Annotated[Path, typer.Argument(metavar="TO", help="Another folder of images.")],
    out: Annotated[Path, typer.Option(help="The direction, a .safetensors file.")] = Path("direction.safetensors"),
    model: Model = "emoji",
    strength: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the steps to noise by which images are inverted, 0 to 1.")
    ] = 0.7,
    steps: Annotated[int, typer.Option(min=1, help="Steps from an image to noise.")] = 30,
    prompt: Annotated[str, typer.Option(help="Description of all images.")] = "",
    device: Device = None,
) -> None:
    """Find the direction from one folder of images to another."""
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: give a file that ends in .safetensors")
    check_writable([out])
    start, end = _images(first), _images(second)

    from ldm.allocator import keep_freed_memory
    from ldm.generation import TextToImage, directions

    keep_freed_memory()
    settings = directions.InversionSettings(strength, steps, prompt)
    directions.find(TextToImage.from_pretrained(model, device=device), start, end, settings).save(out)
    typer.echo(out)


@app.command()
def apply(
    direction: Annotated[Path, typer.Argument(metavar="DIRECTION", help="A file of `ldm direction find`.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="The images to move.")],
    amount: Annotated[
        list[float] | None,
        typer.Option(help="Multiple of the direction; 0: none; repeatable.  [default: 1]"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="An image file; with several images or amounts a contact sheet, a row for each image.  [default: a "
            "new file in generated/]"
        ),
    ] = None,
    model: Model = "emoji",
    device: Device = None,
) -> None:
    """Move images along a direction."""
    new = out is None
    if out is None:
        make_folder(FOLDER)
        out = FOLDER / "moved.png"
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
        shown = [
            [directions.cropped(pipe, image, found.settings), *row] for image, row in zip(given, rows, strict=True)
        ]
        made = contact_sheet([image for row in shown for image in row], columns=1 + len(amounts))
    out = new_file(out) if new else out
    try:
        made.save(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    typer.echo(out)


def _images(folder: Path) -> list[Image.Image]:
    """Read all images of a folder.

    Raises:
        UserError: if there are none.
    """
    from ldm.data.images import read_image

    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give a folder of images")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise UserError(f"{folder} contains no images ({', '.join(IMAGE_SUFFIXES)})")
    return [read_image(path) for path in paths]
