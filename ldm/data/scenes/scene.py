"""The record of a scene, from which image, mask, labels and captions are derived."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ldm.data.scenes import captions as captions_of

Kind = Literal["one", "coloured", "count", "beside", "above", "sizes", "two coloured", "playing", "wearing", "riding"]


@dataclass(frozen=True)
class Thing:
    """One emoji in a scene; lengths are in sides of the image, y grows downwards."""

    code: str
    name: str
    colour: str | None
    x: float  # centre of the artwork's square
    y: float
    side: float  # of the artwork's square
    angle: float  # degrees, counter-clockwise
    flip: bool  # mirrored left to right before it is turned
    z: int  # things of higher z cover lower ones
    box: tuple[float, float, float, float]  # left, top, right, bottom of the opaque pixels


@dataclass(frozen=True)
class Background:
    """A flat colour, or a simple landscape whose horizon is at a fraction of the image's height."""

    kind: Literal["flat", "landscape"]
    name: str
    horizon: float = 0.0


@dataclass(frozen=True)
class Scene:
    """Things, the relation of the first to the second, and the background."""

    kind: Kind
    things: tuple[Thing, ...]
    relation: str | None
    background: Background

    def to_record(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        record = asdict(self)
        record["things"] = [thing | {"box": list(thing["box"])} for thing in record["things"]]
        return record

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Scene:
        """Convert the result of `to_record` back."""
        things = tuple(Thing(**{**thing, "box": tuple(thing["box"])}) for thing in record["things"])
        return cls(record["kind"], things, record["relation"], Background(**record["background"]))

    def captions(self, exact: bool = False) -> list[str]:
        """Return three to five captions; the first is the simplest complete one.

        For `exact` see `ldm.data.scenes.captions`.
        """
        return captions_of.captions(self, exact)

    def labels(self) -> list[str]:
        """Return the name of each thing, in the order of `things`."""
        return [thing.name for thing in self.things]
