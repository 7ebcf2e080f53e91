"""Where drawn images are written, and what their files say of how they were made."""

from __future__ import annotations

import json
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

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def output_paths(out: Path, prompts: Sequence[str], num: int, grid: bool) -> list[Path]:
    """The files to write, in the order of the images; makes the folder if `out` is one."""
    count = 1 if grid else len(prompts) * num
    if out.suffix.lower() in IMAGE_SUFFIXES:
        return [out] if count == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(count)]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}") from None
    if grid:
        return [out / "grid.png"]
    slugs = [slug(prompt) for prompt in prompts for _ in range(num)]
    return [out / f"{name}-{i}.png" for i, name in enumerate(slugs)]


def slug(prompt: str) -> str:
    """A prompt's letters and digits as the beginning of a file's name."""
    return re.sub(r"[\W_]+", "-", prompt.lower())[:50].strip("-") or "image"


def check_writable(paths: Sequence[Path]) -> None:
    """Raise UserError, before any work is done, if the files could not be written after it."""
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
    """Columns of a grid that is about square, one more than that where it leaves no gap."""
    square = math.ceil(math.sqrt(count))
    return square + 1 if count % square and count % (square + 1) == 0 else square


def save_grid(
    images: list[Image.Image], columns: int, path: Path, prompts: Sequence[str], facts: dict[str, object]
) -> None:
    """Write all images as one contact sheet."""
    from ldm.data.images import contact_sheet

    save(contact_sheet(images, columns), path, "\n".join(prompts), facts)
    typer.echo(path)


def save(image: Image.Image, path: Path, prompt: str, facts: dict[str, object]) -> None:
    """Write an image; a PNG tells in its text chunks how it was made."""
    from PIL.PngImagePlugin import PngInfo

    notes = PngInfo()
    notes.add_text("prompt", prompt)
    notes.add_text("negative_prompt", str(facts["negative_prompt"]))
    notes.add_text("parameters", json.dumps(facts))
    try:
        image.save(path, pnginfo=notes)  # other formats have no use for it
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
