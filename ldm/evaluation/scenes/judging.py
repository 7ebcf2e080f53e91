"""Whether what was found in an image is what a scene's record says, measure by measure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ldm.data.scenes.compose import CONTACTS
from ldm.data.scenes.layout import mirror
from ldm.data.scenes.scene import Scene
from ldm.evaluation.scenes.probe import Found

MEASURES = ("objects", "colours", "counts", "sides", "contacts", "sizes", "whole")
LEAST_APART = 0.1  # of the centres of two things of which one is left of the other or above it, in sides of the image
LEAST_BIGGER = 1.4  # how many times bigger a big thing is than a small one; in the data 2 to 2.5 times
MOST_ASTRAY = 0.3  # of a prop from its place at the animal, in sizes of the animal
MOST_RESIZED = 1.6  # factor between a prop's size and the one that suits the animal


def judge(scene: Scene, found: Sequence[Found]) -> dict[str, bool]:
    """For each measure that means something to the scene whether the things found, the likeliest first, are right.

    `objects`: all kinds of thing in the record and no others. `colours`: every thing that the record calls by a colour
    has it. `counts`: as many things as the record has (scenes of kind count). `sides`: left of, or above. `contacts`:
    the prop is where the animal plays, wears or rides it. `sizes`: the big thing is the bigger one. `whole`: all of
    these, and each kind of thing exactly as often as in the record.
    """
    names, record = Counter(thing.name for thing in found), Counter(scene.labels())
    right = {"objects": names.keys() == record.keys()}
    if any(thing.colour for thing in scene.things):
        right["colours"] = all(_has_colour(thing.name, thing.colour, found) for thing in scene.things)
    if scene.kind == "count":
        right["counts"] = names[scene.things[0].name] == len(scene.things)
    measure = {"left of": "sides", "above": "sides", "bigger than": "sizes"}.get(scene.relation or "", "contacts")
    if scene.relation not in (None, "next to"):
        first = {thing.name: thing for thing in reversed(found)}
        both = [first.get(thing.name) for thing in scene.things]
        right[measure] = None not in both and _related(scene, *both)  # type: ignore[arg-type]
    return right | {"whole": all(right.values()) and names == record}


def _has_colour(name: str, colour: str | None, found: Sequence[Found]) -> bool:
    """Whether there is a thing of that name, and all such things have the colour."""
    colours = {thing.colour for thing in found if thing.name == name}
    return colour is None or colours == {colour}


def _related(scene: Scene, one: Found, other: Found) -> bool:
    """Whether the first thing stands to the second as the record says."""
    right, down = (np.array(other.centre) - one.centre).tolist()
    if scene.relation == "left of":
        return right > max(LEAST_APART, abs(down))
    if scene.relation == "above":
        return down > max(LEAST_APART, abs(right))
    if scene.relation == "bigger than":
        return one.size > LEAST_BIGGER * other.size
    return any(_at_place(one, other, place) for place in _places(scene.kind, one.name, other.name))


def _at_place(animal: Found, prop: Found, place: tuple[np.ndarray, float]) -> bool:
    offset, ratio = place
    astray = np.linalg.norm((np.array(prop.centre) - animal.centre) / animal.size - offset)
    return bool(astray < MOST_ASTRAY) and 1 / MOST_RESIZED < prop.size / animal.size / ratio < MOST_RESIZED


def _places(kind: str, animal: str, prop: str) -> list[tuple[np.ndarray, float]]:
    """Where a prop belongs, from the animal's centre, and how large it is, both in sizes of the animal, either way."""
    places = []
    parts = CONTACTS[kind][1](animal, prop)
    for group in (parts, mirror(parts)):
        boxes = np.array([part.box() for part in group]).reshape(2, 2, 2)  # of each the two corners
        centres, sizes = boxes.mean(1), (boxes[:, 1] - boxes[:, 0]).max(-1)
        places.append(((centres[1] - centres[0]) / sizes[0], float(sizes[1] / sizes[0])))
    return places
