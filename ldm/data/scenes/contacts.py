"""Pairs of drawings aligned at points of contact: an animal with an instrument, a hat or a vehicle."""

from __future__ import annotations

from dataclasses import replace

from ldm.data.scenes.artwork import UNITS
from ldm.data.scenes.layout import Part
from ldm.data.scenes.vocabulary import anchors, named


def playing(animal: str, instrument: str) -> list[Part]:
    """Align a wind instrument with the animal's mouth, or put another instrument in front of the animal."""
    grip = anchors("instruments")[instrument]
    prop = replace(_upright(instrument), side=grip["size"], angle=grip["angle"], z=1)
    contact = anchors("animals")[animal]["mouth"] if grip["hold"] == "mouth" else grip["to"]
    return [_upright(animal), prop.put(grip["at"], contact)]


def wearing(animal: str, hat: str) -> list[Part]:
    """Put a hat as wide as the animal's head on it."""
    x, y, width = anchors("animals")[animal]["head"]
    shape = anchors("hats")[hat]
    prop = replace(_upright(hat), side=UNITS * width / shape["width"], z=1)
    return [_upright(animal), prop.put(shape["base"], (x, y))]


def riding(animal: str, vehicle: str) -> list[Part]:
    """Put the animal's lowest point on the vehicle's seat, in front of the vehicle or behind it."""
    seat = anchors("vehicles")[vehicle]
    ride = replace(_upright(vehicle), angle=seat["angle"]).put(seat["seat"], (0, 0))
    rider = replace(_upright(animal), side=seat["size"], z=-1 if seat.get("behind") else 1)
    left, _, right, bottom = rider.box()
    return [replace(rider, x=rider.x - (left + right) / 2, y=rider.y - bottom), ride]


def _upright(name: str) -> Part:
    """Return an emoji at its place in artwork units."""
    return Part(named(name).code, name, x=UNITS / 2, y=UNITS / 2, side=UNITS)
