"""The record of a scene: everything that image, mask, labels and captions are derived from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["one", "coloured", "count", "beside", "above", "sizes", "two coloured", "playing", "wearing", "riding"]


@dataclass(frozen=True)
class Thing:
    """One drawing in a scene; lengths are in sides of the image, y grows downwards."""

    code: str
    name: str
    colour: str | None
    x: float  # centre of the artwork's square
    y: float
    side: float  # of the artwork's square
    angle: float  # degrees, counter-clockwise
    flip: bool  # mirrored left to right before it is turned
    z: int  # things of higher z hide those below
    box: tuple[float, float, float, float]  # left, top, right, bottom of what is drawn


@dataclass(frozen=True)
class Background:
    """A flat colour, or a simple landscape with its horizon at a height of the image."""

    kind: Literal["flat", "landscape"]
    name: str
    horizon: float = 0.0


@dataclass(frozen=True)
class Scene:
    """Things, how the first stands to the second, and what lies behind them."""

    kind: Kind
    things: tuple[Thing, ...]
    relation: str | None
    background: Background

    def to_record(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        record = asdict(self)
        record["things"] = [thing | {"box": list(thing["box"])} for thing in record["things"]]
        return record

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Scene:
        """The scene that `to_record` gave."""
        things = tuple(Thing(**{**thing, "box": tuple(thing["box"])}) for thing in record["things"])
        return cls(record["kind"], things, record["relation"], Background(**record["background"]))

    def captions(self, exact: bool = False) -> list[str]:
        """Three to five true captions, the same at every call; the first is the plainest full description.

        `exact` as in `ldm.data.scenes.captions`.
        """
        from ldm.data.scenes.captions import captions

        return captions(self, exact)

    def labels(self) -> list[str]:
        """The name of each thing, in the order of `things`."""
        return [thing.name for thing in self.things]
