"""Files of generated images, and the parameters in their PNG metadata."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ldm.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

FOLDER = Path("generated")  # of images without --out
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


NUMBERED = re.compile(r"-(\d{1,9})$")  # the end of a stem


def output_paths(out: Path, prompts: Sequence[str], num: int, grid: bool) -> list[Path]:
    """Return the files of the images in order; makes the folder if `out` is one.

    Numbers in a folder continue after the highest existing one.
    """
    count = 1 if grid else len(prompts) * num
    if names_file(out):
        return [out] if count == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(count)]
    if re.fullmatch(r"\.[A-Za-z]{3,4}", out.suffix) and not out.is_dir():
        raise UserError(
            f"--out {out}: {out.suffix} is not supported: use {' '.join(IMAGE_SUFFIXES)}, or create the folder first"
        )
    make_folder(out)
    if grid:
        return [out / "grid.png"]
    slugs = [slug(prompt) for prompt in prompts for _ in range(num)]
    return [out / f"{name}-{i}.png" for i, name in enumerate(slugs, start=next_number(out))]


def next_number(folder: Path) -> int:
    """Return the number after the largest one at the end of a file's name in a folder."""
    numbers = [int(match[1]) for path in folder.iterdir() if (match := NUMBERED.search(path.stem))]
    return max(numbers, default=-1) + 1


def names_file(out: Path) -> bool:
    """Return whether `--out` names an image file, which is overwritten, and not a folder, whose files are not."""
    return out.suffix.lower() in IMAGE_SUFFIXES


def make_folder(folder: Path) -> None:
    """Create a folder if it does not exist.

    Raises:
        UserError: if that fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from None


def new_file(path: Path) -> Path:
    """Create an empty file, with the next free number if the name is taken, also by another process.

    Raises:
        UserError: if it cannot be written.
    """
    new, number = path, 0
    while True:
        try:
            new.touch(exist_ok=False)
            return new
        except FileExistsError:
            number += 1
            new = path.with_stem(f"{path.stem}-{number}")
        except OSError as error:
            raise UserError(f"cannot write {new}: {error.strerror or error}") from None


def slug(prompt: str) -> str:
    """Return a file name from the letters and digits of a prompt."""
    return re.sub(r"[\W_]+", "-", prompt.lower())[:50].strip("-") or "image"


def check_writable(paths: Sequence[Path]) -> None:
    """Raise UserError if the files cannot be written, before any work is done."""
    folder = paths[0].parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    for path in paths:
        if path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder")


def grid_columns(count: int) -> int:
    """Return the columns of a grid that is about square, one more where that leaves no gap."""
    square = math.ceil(math.sqrt(count))
    return square + 1 if count % square and count % (square + 1) == 0 else square


def save_grid(
    images: list[Image.Image], columns: int, path: Path, prompts: Sequence[str], facts: dict[str, object], new: bool
) -> None:
    """Save all images as one contact sheet; `new` as in `save`."""
    from ldm.data.images import contact_sheet

    save(contact_sheet(images, columns), path, "\n".join(prompts), facts, new)


def save(image: Image.Image, path: Path, prompt: str, facts: dict[str, object], new: bool) -> None:
    """Save an image and print its path; PNG metadata records the parameters.

    Args:
        new: Keep an existing file, and number the name on.
    """
    from ldm.generation.metadata import png_text

    path = new_file(path) if new else path
    try:
        image.save(path, pnginfo=png_text(prompt, facts))  # other formats ignore it
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    typer.echo(path)
