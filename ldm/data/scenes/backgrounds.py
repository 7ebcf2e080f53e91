"""Backgrounds, flat colours and simple landscapes: choose one that contrasts with the things, and paint it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ldm.data.scenes import colours
from ldm.data.scenes.artwork import measures
from ldm.data.scenes.scene import Background, Thing

WHITE_SHARE, LANDSCAPE_SHARE = 0.25, 0.30  # of all scenes; the rest has other flat colours
CONTRAST = 26.0  # CIELAB distance; an edge of less is hard to see
MOST_LOST = 0.30  # share of a thing's edge that may be hard to see
ATTEMPTS = 24


@dataclass(frozen=True)
class Landscape:
    """Sky from the top to the horizon, then ground; optionally a strip of sea between them."""

    sky: tuple[str, str]  # at the top and at the horizon
    ground: tuple[str, str]  # at the horizon and at the bottom
    sea: str | None = None
    stars: bool = False


LANDSCAPES = {
    "grass": Landscape(("#5EB0F2", "#C6E6FA"), ("#6CBB45", "#4E9E33")),
    "beach": Landscape(("#6FC3F5", "#D6F0FB"), ("#F2DDA4", "#E5C57F"), sea="#3D9BD3"),
    "snow": Landscape(("#9DBBDD", "#D3E2F0"), ("#F6FAFD", "#E6EEF5")),
    "night": Landscape(("#10183C", "#2C3A73"), ("#25402F", "#182C21"), stars=True),
    "desert": Landscape(("#8FCBEF", "#F6E3C3"), ("#E5A85A", "#CF8A3E")),
}
SEA_HEIGHT = 0.14
STARS = np.random.RandomState(7).uniform((0.03, 0.03), (0.97, 0.55), (26, 2))


def choose_background(things: Sequence[Thing], rng: np.random.Generator) -> Background:
    """Choose a random background with enough contrast to every thing, or the best of those tried."""
    best, least = Background("flat", "white"), np.inf
    for _ in range(ATTEMPTS):
        background = _random(rng)
        lost = max(_lost(thing, background) for thing in things)
        if lost < least:
            best, least = background, lost
        if least <= MOST_LOST:
            break
    return best


def paint_background(background: Background, side: int) -> np.ndarray:
    """Paint the background, uint8 (side, side, 3)."""
    if background.kind == "flat":
        return np.full((side, side, 3), colours.rgb(colours.BACKGROUNDS[background.name]), dtype=np.uint8)
    look = LANDSCAPES[background.name]
    rows = (np.arange(side) + 0.5) / side
    image = np.where((rows < background.horizon)[:, None], *_bands(look, rows, background.horizon))
    if look.sea:
        sea = (rows >= background.horizon) & (rows < background.horizon + SEA_HEIGHT)
        image[sea] = colours.rgb(look.sea)
    image = np.repeat(image[:, None], side, axis=1)
    if look.stars:
        _stars(image, background.horizon)
    return image.round().astype(np.uint8)


def _bands(look: Landscape, rows: np.ndarray, horizon: float) -> tuple[np.ndarray, np.ndarray]:
    """Return colours of sky and ground for each row, (side, 3) each."""
    return _blend(look.sky, rows / horizon), _blend(look.ground, (rows - horizon) / (1 - horizon))


def _blend(ends: tuple[str, str], share: np.ndarray) -> np.ndarray:
    low, high = (np.array(colours.rgb(code), dtype=np.float64) for code in ends)
    return low + (high - low) * np.clip(share, 0, 1)[:, None]


def _stars(image: np.ndarray, horizon: float) -> None:
    side = len(image)
    thickness = max(1, round(side / 64))
    for x, y in STARS:
        if y < horizon - 0.05:
            row, column = int(y * side), int(x * side)
            image[row : row + thickness, column : column + thickness] = (240, 240, 210)


def _random(rng: np.random.Generator) -> Background:
    chance = rng.random()
    if chance < WHITE_SHARE:
        return Background("flat", "white")
    if chance < WHITE_SHARE + LANDSCAPE_SHARE:
        names = list(LANDSCAPES)
        return Background("landscape", names[rng.integers(len(names))], round(float(rng.uniform(0.56, 0.7)), 3))
    names = [name for name in colours.BACKGROUNDS if name != "white"]
    return Background("flat", names[rng.integers(len(names))])


def _lost(thing: Thing, background: Background) -> float:
    """Return the share of a thing's edge that is hard to see on the worst part of the background."""
    edge = measures(thing.code, thing.colour).edge
    if background.kind == "flat":
        codes = [colours.BACKGROUNDS[background.name]]
    else:
        look = LANDSCAPES[background.name]
        codes = [*look.sky, *look.ground]
    behind = colours.to_lab(np.array([colours.rgb(code) for code in codes]))
    near = np.linalg.norm(edge[:, None] - behind, axis=-1) < CONTRAST
    return float(near.mean(0).max())
