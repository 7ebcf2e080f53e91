"""Place drawings: parts in any coordinate system, aligned at points of contact and fitted into an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ldm.data.scenes.artwork import UNITS, measures
from ldm.data.scenes.scene import Thing

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Part:
    """An emoji placed in a coordinate system, with the fields of `Thing`."""

    code: str
    name: str
    colour: str | None = None
    x: float = 0.0
    y: float = 0.0
    side: float = 1.0
    angle: float = 0.0
    flip: bool = False
    z: int = 0

    def points(self, unit: np.ndarray) -> np.ndarray:
        """Transform points (M, 2), in sides of the artwork from its centre, to the part's coordinate system."""
        x, y = unit[:, 0] * (-1 if self.flip else 1), unit[:, 1]
        cos, sin = np.cos(np.deg2rad(self.angle)), np.sin(np.deg2rad(self.angle))
        turned = np.stack([x * cos + y * sin, y * cos - x * sin], axis=-1)
        return turned * self.side + (self.x, self.y)

    def box(self) -> Box:
        """Bounding box of the opaque pixels."""
        points = self.points(measures(self.code).outline)
        (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
        return left, top, right, bottom

    def put(self, anchor: Sequence[float], at: Sequence[float]) -> Part:
        """Move the part so that the point `anchor` of its artwork (in artwork units) is at `at`."""
        unit = np.array([anchor], dtype=np.float64) / UNITS - 0.5
        ((x, y),) = self.points(unit).tolist()
        return replace(self, x=self.x + at[0] - x, y=self.y + at[1] - y)


def union(boxes: Sequence[Box]) -> Box:
    """Return the bounding box of all boxes."""
    low, high = np.array(boxes)[:, :2].min(0), np.array(boxes)[:, 2:].max(0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def mirror(parts: Sequence[Part]) -> list[Part]:
    """Flip a group left to right."""
    return [replace(p, x=-p.x, angle=-p.angle, flip=not p.flip) for p in parts]


def fit(parts: Sequence[Part], frame: Box) -> list[Thing]:
    """Scale a group to fit into `frame` (in sides of the image) without distortion, centred."""
    left, top, right, bottom = union([part.box() for part in parts])
    scale = min((frame[2] - frame[0]) / (right - left), (frame[3] - frame[1]) / (bottom - top))
    dx = (frame[0] + frame[2]) / 2 - scale * (left + right) / 2
    dy = (frame[1] + frame[3]) / 2 - scale * (top + bottom) / 2
    return [_thing(replace(p, x=p.x * scale + dx, y=p.y * scale + dy, side=p.side * scale)) for p in parts]


def around(x: float, y: float, width: float, height: float | None = None) -> Box:
    """Return the box of a size around the centre (x, y)."""
    height = width if height is None else height
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _thing(part: Part) -> Thing:
    """Round a part's numbers, so that records are readable and exact in JSON."""
    x, y, side = (round(float(length), 4) for length in (part.x, part.y, part.side))
    placed = replace(part, x=x, y=y, side=side, angle=round(float(part.angle), 1))
    left, top, right, bottom = (round(edge, 4) for edge in placed.box())
    return Thing(**vars(placed), box=(left, top, right, bottom))
