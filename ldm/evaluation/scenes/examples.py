"""Training examples of the probe: half regular scenes, half scattered objects.

Regular scenes come from both splits, so that the probe knows all pairs of objects. Scattered objects prevent it from
inferring objects that it does not see from the rules of regular scenes.
"""

from __future__ import annotations

from functools import cache, partial
from typing import NamedTuple

import numpy as np

from ldm.data.progress import track
from ldm.data.scenes import artwork, colours
from ldm.data.scenes.backgrounds import choose_background
from ldm.data.scenes.compose import make_scene
from ldm.data.scenes.drawing import render
from ldm.data.scenes.layout import Box, Part, around, fit
from ldm.data.scenes.making import make_many
from ldm.data.scenes.scene import Scene, Thing
from ldm.data.scenes.vocabulary import Concept, first, named, never_coloured

MOST = 6  # objects in a scene
SCATTERED_SHARE = 0.5
COLOURED_SHARE = 0.4  # of scattered objects, if the concept can be coloured
NUMBERS = (0.25, 0.3, 0.15, 0.1, 0.1, 0.1)  # probabilities of one to six objects in a scattered scene
SIZES = ((0.3, 0.92), (0.24, 0.5), (0.22, 0.4), (0.22, 0.36), (0.22, 0.33), (0.2, 0.3))  # ranges of their sizes
MOST_HIDDEN = 0.2  # overlap of scattered objects' boxes
UNKNOWN = -1


class Examples(NamedTuple):
    """Images and the objects in them."""

    images: np.ndarray  # bytes (N, H, W, 3)
    things: np.ndarray  # (N, 6, 6): concept, colour, left, top, right, bottom; a concept of -1 is empty


def make_examples(seed: int, count: int, side: int, concepts: int, processes: int | None = None) -> Examples:
    """Render `count` examples; a pure function of all arguments except `processes`."""
    images = np.empty((count, side, side, 3), dtype=np.uint8)
    things = np.full((count, MOST, 6), float(UNKNOWN), dtype=np.float32)
    made = make_many(partial(_example, seed, side, concepts), count, processes)
    for index, (image, rows) in enumerate(track(made, "rendering the probe's scenes", count)):
        images[index] = image
        things[index, : len(rows)] = rows
    return Examples(images, things)


def _example(seed: int, side: int, concepts: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, index])
    if rng.random() < SCATTERED_SHARE:
        scene = scattered(rng, concepts)
    else:
        scene = make_scene(seed, index, "train" if index % 2 else "test", concepts)
    return render(scene, side), np.array([_row(thing, concepts) for thing in scene.things], dtype=np.float32)


def _row(thing: Thing, concepts: int) -> list[float]:
    colour = thing.colour or own_colour(thing.code)
    number = UNKNOWN if colour is None else list(colours.THINGS).index(colour)
    return [float(_numbers(concepts)[thing.name]), float(number), *thing.box]


@cache
def _numbers(concepts: int) -> dict[str, int]:
    return {concept.name: number for number, concept in enumerate(first(concepts))}


@cache
def own_colour(code: str) -> str | None:
    """Return the colour of unpainted artwork, if it has one."""
    palette = artwork.measures(code).palette
    return next((name for name in colours.THINGS if colours.is_coloured(palette, name)), None)


def scattered(rng: np.random.Generator, concepts: int) -> Scene:
    """Return up to six objects of any kind, colour, size and place that do not hide each other."""
    number = int(rng.choice(len(NUMBERS), p=NUMBERS))
    things: list[Thing] = []
    for _ in range(20 * (number + 1)):
        if len(things) == number + 1:
            break
        thing = _scattered_thing(rng, concepts, SIZES[number])
        if all(_hidden(thing.box, other.box) < MOST_HIDDEN for other in things):
            things.append(thing)
    return Scene("one", tuple(things), None, choose_background(things, rng))


def _scattered_thing(rng: np.random.Generator, concepts: int, sizes: tuple[float, float]) -> Thing:
    concept = first(concepts)[rng.integers(concepts)]
    paints = _paints(concept)
    colour = paints[rng.integers(len(paints))] if paints and rng.random() < COLOURED_SHARE else None
    size = rng.uniform(*sizes)
    x, y = rng.uniform(0.47 * size, 1 - 0.47 * size, 2)
    part = Part(concept.code, concept.name, colour, angle=rng.uniform(-15, 15), flip=bool(rng.random() < 0.5))
    (thing,) = fit([part], around(x, y, size))
    return thing


@cache
def _paints(concept: Concept) -> tuple[str, ...]:
    """Return the colours that captions may give to the concept."""
    if concept.name in never_coloured() or not named(concept.name).countable:
        return ()
    return artwork.paintable(concept.code)


def _hidden(one: Box, other: Box) -> float:
    """Return the fraction of the smaller box that the larger one covers."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return max(width, 0.0) * max(height, 0.0) / min(areas)
