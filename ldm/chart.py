"""Curves in an image: axes with grid lines, and no library but Pillow."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

SCALE = 2  # drawn so many times as large and scaled down, for smooth lines
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 44, 56
Point = tuple[float, float]


def smoothed(values: list[float]) -> list[float]:
    """Moving averages to both sides, whose weights fall by e over a thirtieth of the curve."""
    there, back = _averages(values), _averages(values[::-1])[::-1]
    return [(a + b) / 2 for a, b in zip(there, back, strict=True)]


def _averages(values: list[float]) -> list[float]:
    """Exponential moving averages, unbiased at the start."""
    keep = math.exp(-30 / max(len(values), 60))
    total = weight = 0.0
    means = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        means.append(total / weight)
    return means


class Chart:
    """Axes with grid lines for some points, which curves are then drawn into.

    Logarithmic upwards where all values are positive and span more than a factor of 5, unless both axes start at zero.
    """

    def __init__(
        self,
        points: Sequence[Point],
        across: str,
        upwards: str,
        size: tuple[int, int] = (900, 420),
        from_zero: bool = False,
    ) -> None:
        places, values = zip(*[(0.0, 0.0), *points] if from_zero else points, strict=True)
        self.width, self.height = size
        self.first, self.last = min(places), max(max(places), min(places) + 1)
        self.logarithmic = min(values) > 0 and max(values) > 5 * min(values)
        self.ticks = _log_ticks(min(values), max(values)) if self.logarithmic else _ticks(min(values), max(values))
        self.low = self._height(min(min(values), self.ticks[0]))
        self.high = self._height(max(max(values), self.ticks[-1]))
        self.high += self.high == self.low  # a level curve has a height as well
        self.image = Image.new("RGB", (self.width * SCALE, self.height * SCALE), "white")
        self.draw, self.font, self.legend = ImageDraw.Draw(self.image), ImageFont.load_default(13 * SCALE), float(LEFT)
        self._axes(across, upwards + (", logarithmic" if self.logarithmic else ""))

    def curve(self, points: Sequence[Point], name: str, colour: str, smooth: bool = False) -> None:
        """Draw points joined by lines, with the name in the legend; `smooth`: pale, with a moving average over it."""
        if not points:
            return
        places, values = zip(*points, strict=True)
        if smooth:
            self._line(points, _pale(colour), 1.2)
            points = list(zip(places, smoothed(list(values)), strict=True))
        self._line(points, colour, 2.2)
        if not smooth:
            for point in points:
                x, y = self._at(*point)
                self.draw.ellipse([x - 3 * SCALE, y - 3 * SCALE, x + 3 * SCALE, y + 3 * SCALE], fill=colour)
        self.draw.line([self._pixel(self.legend, 22), self._pixel(self.legend + 24, 22)], colour, 3 * SCALE)
        self.draw.text(self._pixel(self.legend + 32, 22), name, "#333333", self.font, anchor="lm")
        self.legend += 56 + self.draw.textlength(name, self.font) / SCALE

    def finished(self) -> Image.Image:
        """The chart at its size."""
        return self.image.resize((self.width, self.height), Image.Resampling.LANCZOS)

    def _axes(self, across: str, upwards: str) -> None:
        for value in self.ticks:
            _, y = self._at(self.first, value)
            self.draw.line([(LEFT * SCALE, y), ((self.width - RIGHT) * SCALE, y)], "#e4e4e4", SCALE)
            self.draw.text(((LEFT - 8) * SCALE, y), f"{value:.3g}", "#555555", self.font, anchor="rm")
        foot = self.height - BOTTOM
        for place in _ticks(self.first, self.last):
            x, _ = self._at(place, self.ticks[0])
            self.draw.line([(x, foot * SCALE), (x, (foot + 5) * SCALE)], "#888888", SCALE)
            self.draw.text((x, (foot + 10) * SCALE), f"{place:,.0f}", "#555555", self.font, anchor="mt")
        self.draw.line([self._pixel(LEFT, foot), self._pixel(self.width - RIGHT, foot)], "#888888", SCALE)
        middle = (LEFT + self.width - RIGHT) / 2
        self.draw.text(self._pixel(middle, self.height - 8), across, "#333333", self.font, anchor="mb")
        label = Image.new("L", (self.height * SCALE, 20 * SCALE))
        middle = (self.height - (TOP + foot) / 2) * SCALE
        ImageDraw.Draw(label).text((middle, 10 * SCALE), upwards, 255, self.font, anchor="mm")
        self.image.paste("#333333", (4 * SCALE, 0), label.rotate(90, expand=True))

    def _line(self, points: Sequence[Point], colour: str, width: float) -> None:
        self.draw.line([self._at(*point) for point in points], colour, round(width * SCALE), joint="curve")

    def _height(self, value: float) -> float:
        return math.log(value) if self.logarithmic else value

    def _at(self, place: float, value: float) -> Point:
        right = (place - self.first) / (self.last - self.first)
        up = (self._height(value) - self.low) / (self.high - self.low)
        across, upwards = right * (self.width - LEFT - RIGHT), up * (self.height - TOP - BOTTOM)
        return self._pixel(LEFT + across, self.height - BOTTOM - upwards)

    @staticmethod
    def _pixel(x: float, y: float) -> Point:
        return (x * SCALE, y * SCALE)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers from below or at `low` to `high`."""
    rough = (high - low or abs(high) or 1.0) / 5
    size = 10.0 ** math.floor(math.log10(rough))
    size *= next(step for step in (1, 2, 5, 10) if step * size >= rough)
    return [size * count for count in range(math.ceil(low / size), math.floor(high / size) + 1)] or [low]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between `low` and `high`."""
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    return [first * 10.0**power for power in powers for first in (1, 2, 5) if low <= first * 10.0**power <= high]


def _pale(colour: str) -> str:
    """A third of a colour on white."""
    parts = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return "#" + "".join(f"{255 - (255 - part) // 3:02x}" for part in parts)
