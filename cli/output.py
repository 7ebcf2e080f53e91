"""Files of generated images, and the parameters in their PNG metadata."""

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
    """Return the files of the images in order; makes the folder if `out` is one."""
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
    images: list[Image.Image], columns: int, path: Path, prompts: Sequence[str], facts: dict[str, object]
) -> None:
    """Save all images as one contact sheet."""
    from ldm.data.images import contact_sheet

    save(contact_sheet(images, columns), path, "\n".join(prompts), facts)
    typer.echo(path)


def save(image: Image.Image, path: Path, prompt: str, facts: dict[str, object]) -> None:
    """Save an image; PNG metadata records the parameters."""
    from PIL.PngImagePlugin import PngInfo

    metadata = PngInfo()
    metadata.add_text("prompt", prompt)
    metadata.add_text("negative_prompt", str(facts.get("negative_prompt", "")))
    metadata.add_text("parameters", json.dumps(facts))
    try:
        image.save(path, pnginfo=metadata)  # other formats ignore it
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
