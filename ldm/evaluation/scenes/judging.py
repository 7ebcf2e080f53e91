"""Compare what was detected in an image with the record of a scene."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ldm.data.scenes.compose import CONTACTS
from ldm.data.scenes.layout import mirror
from ldm.data.scenes.scene import Scene
from ldm.evaluation.scenes.probe import Found

MEASURES = ("objects", "colours", "counts", "sides", "contacts", "sizes", "whole")
LEAST_DISTANCE = 0.1  # between the centres of objects left of or above each other, in sides of the image
LEAST_BIGGER = 1.4  # ratio of sizes of a big and a small object; 2 to 2.5 in the data
MOST_DISTANCE = 0.3  # distance of a prop from its place at the animal, in sizes of the animal
MOST_RESIZED = 1.6  # ratio of a prop's size and its size in the data


def judge(scene: Scene, found: Sequence[Found]) -> dict[str, bool]:
    """Return for each measure that applies to the scene whether the detected objects, likeliest first, are right.

    `objects`: all kinds of object in the record and no others. `colours`: every object with a colour in the record has
    it. `counts`: the number of objects (scenes of kind count). `sides`: left of, or above. `contacts`: the prop is
    where the animal plays, wears or rides it. `sizes`: the big object is bigger. `whole`: all of these, and each kind
    of object exactly as often as in the record.
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
    """Return whether there are objects of a name, all with the colour."""
    colours = {thing.colour for thing in found if thing.name == name}
    return colour is None or colours == {colour}


def _related(scene: Scene, one: Found, other: Found) -> bool:
    """Return whether two objects have the relation of the record."""
    right, down = (np.array(other.centre) - one.centre).tolist()
    if scene.relation == "left of":
        return right > max(LEAST_DISTANCE, abs(down))
    if scene.relation == "above":
        return down > max(LEAST_DISTANCE, abs(right))
    if scene.relation == "bigger than":
        return one.size > LEAST_BIGGER * other.size
    return any(_at_place(one, other, place) for place in _places(scene.kind, one.name, other.name))


def _at_place(animal: Found, prop: Found, place: tuple[np.ndarray, float]) -> bool:
    offset, ratio = place
    distance = np.linalg.norm((np.array(prop.centre) - animal.centre) / animal.size - offset)
    return bool(distance < MOST_DISTANCE) and 1 / MOST_RESIZED < prop.size / animal.size / ratio < MOST_RESIZED


def _places(kind: str, animal: str, prop: str) -> list[tuple[np.ndarray, float]]:
    """Return the offset and size of a prop in sizes of the animal, for both orientations."""
    places = []
    parts = CONTACTS[kind][1](animal, prop)
    for group in (parts, mirror(parts)):
        boxes = np.array([part.box() for part in group]).reshape(2, 2, 2)  # two corners each
        centres, sizes = boxes.mean(1), (boxes[:, 1] - boxes[:, 0]).max(-1)
        places.append(((centres[1] - centres[0]) / sizes[0], float(sizes[1] / sizes[0])))
    return places
