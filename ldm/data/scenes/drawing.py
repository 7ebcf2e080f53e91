"""Render scenes to images and to masks of instances."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps

from ldm.data.scenes.artwork import raster
from ldm.data.scenes.backgrounds import paint_background
from ldm.data.scenes.scene import Scene, Thing

OVERSAMPLING = 2


def render(scene: Scene, size: int) -> np.ndarray:
    """Render an image, uint8 (size, size, 3)."""
    canvas = Image.fromarray(paint_background(scene.background, size * OVERSAMPLING)).convert("RGBA")
    for _, drawing, corner in _drawings(scene, size * OVERSAMPLING):
        _paste(canvas, drawing, corner)
    return np.asarray(canvas.convert("RGB").reduce(OVERSAMPLING))


def render_mask(scene: Scene, size: int) -> np.ndarray:
    """Render the visible thing of each pixel, uint8 (size, size): 0 background, else position in `things` from 1."""
    mask = np.zeros((size, size), dtype=np.uint8)
    for number, drawing, corner in _drawings(scene, size * OVERSAMPLING):
        canvas = Image.new("RGBA", (size * OVERSAMPLING,) * 2)
        _paste(canvas, drawing, corner)
        mask[np.asarray(canvas.getchannel("A").reduce(OVERSAMPLING)) > 127] = number
    return mask


def _drawings(scene: Scene, side: int) -> Iterator[tuple[int, Image.Image, tuple[int, int]]]:
    """Return number, raster and top left corner of each thing, lowest first."""
    for number, thing in sorted(enumerate(scene.things, 1), key=lambda item: item[1].z):
        drawing = _drawing(thing, max(1, round(thing.side * side)))
        left = round(thing.x * side - drawing.width / 2)
        top = round(thing.y * side - drawing.height / 2)
        yield number, drawing, (left, top)


def _drawing(thing: Thing, pixels: int) -> Image.Image:
    """Raster of a thing's artwork at its size, flipped and rotated."""
    # From few sizes, so that many scenes share the cached rasters.
    source = raster(thing.code, thing.colour, max(128, 1 << (pixels - 1).bit_length()))
    drawing = source.resize((pixels, pixels), Image.Resampling.LANCZOS)
    if thing.flip:
        drawing = ImageOps.mirror(drawing)
    if thing.angle:
        drawing = drawing.rotate(thing.angle, Image.Resampling.BICUBIC, expand=True)
    return drawing


def _paste(canvas: Image.Image, drawing: Image.Image, corner: tuple[int, int]) -> None:
    """Composite over the canvas; parts outside it are cropped."""
    left, top = corner
    visible = (
        max(0, -left),
        max(0, -top),
        min(drawing.width, canvas.width - left),
        min(drawing.height, canvas.height - top),
    )
    if visible[0] < visible[2] and visible[1] < visible[3]:
        canvas.alpha_composite(drawing, (max(0, left), max(0, top)), visible)
