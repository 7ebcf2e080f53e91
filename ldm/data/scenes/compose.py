"""Make a scene from (seed, index, split): choose things, place them, and choose a background."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Literal

import numpy as np

from ldm.data.scenes import artwork, colours, contacts
from ldm.data.scenes.backgrounds import choose_background
from ldm.data.scenes.layout import Box, Part, around, fit, mirror
from ldm.data.scenes.scene import Kind, Scene, Thing
from ldm.data.scenes.vocabulary import Concept, anchors, first, is_held_out, never_coloured

Split = Literal["train", "test"]

Mix = Literal["objects", "relations"]

# Frequency of each kind, if the concepts allow it.
WEIGHTS: dict[Kind, float] = {
    "one": 0.30,
    "coloured": 0.08,
    "count": 0.12,
    "beside": 0.07,
    "above": 0.04,
    "sizes": 0.04,
    "two coloured": 0.07,
    "playing": 0.13,
    "wearing": 0.08,
    "riding": 0.07,
}
# For the mix "relations": three of four scenes have counts, colours or relations.
RELATION_WEIGHTS: dict[Kind, float] = {
    "one": 0.14,
    "coloured": 0.09,
    "count": 0.18,
    "beside": 0.13,
    "above": 0.09,
    "sizes": 0.06,
    "two coloured": 0.10,
    "playing": 0.09,
    "wearing": 0.06,
    "riding": 0.06,
}
RELATIONS = {"beside": "left of", "above": "above", "sizes": "bigger than", "two coloured": "next to"}
CONTACTS: dict[str, tuple[str, Callable[[str, str], list[Part]]]] = {
    "playing": ("instruments", contacts.playing),
    "wearing": ("hats", contacts.wearing),
    "riding": ("vehicles", contacts.riding),
}
# Centres of two to six equal things, and the width of each.
COUNTS: dict[int, tuple[float, list[tuple[float, float]]]] = {
    2: (0.40, [(0.27, 0.5), (0.73, 0.5)]),
    3: (0.38, [(0.5, 0.28), (0.27, 0.72), (0.73, 0.72)]),
    4: (0.37, [(0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)]),
    5: (0.29, [(0.2, 0.2), (0.8, 0.2), (0.5, 0.5), (0.2, 0.8), (0.8, 0.8)]),
    6: (0.28, [(0.18, 0.3), (0.5, 0.3), (0.82, 0.3), (0.18, 0.7), (0.5, 0.7), (0.82, 0.7)]),
}
COLOURED_COUNTS = 0.2  # the share of counts whose things have a colour


@dataclass(frozen=True)
class Cast:
    """The concepts that (concepts, split) allows for each role."""

    alone: tuple[Concept, ...]
    countable: tuple[Concept, ...]
    colourable: tuple[Concept, ...]  # countable, of one colour, and no colour in the name
    pairs: dict[Kind, tuple[tuple[str, str], ...]]  # kinds of animal and prop
    kinds: tuple[Kind, ...]
    split: Split


def make_scene(seed: int, index: int, split: Split, concepts: int | None = None, mix: Mix = "objects") -> Scene:
    """Make scene number `index` of a split, as a pure function of the arguments, with the first `concepts` concepts."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, index, int(split == "test")]))
    cast = _cast(concepts, split)
    of_mix = WEIGHTS if mix == "objects" else RELATION_WEIGHTS
    weights = np.array([of_mix[kind] for kind in cast.kinds])
    kind = cast.kinds[rng.choice(len(weights), p=weights / weights.sum())]
    things, relation = _things(kind, cast, rng)
    background = choose_background(things, rng)
    return Scene(kind, tuple(things), relation, background)


@cache
def _cast(count: int | None, split: Split) -> Cast:
    """Find the allowed concepts, pairs and kinds of scene."""
    alone = first(count)
    names = {concept.name for concept in alone}
    animals = [name for name in anchors("animals") if name in names]
    pairs: dict[Kind, tuple[tuple[str, str], ...]] = {}
    for kind, part in (("playing", "mouth"), ("wearing", "head"), ("riding", "")):
        able = [name for name in animals if not part or part in anchors("animals")[name]]
        props = [name for name in anchors(CONTACTS[kind][0]) if name in names]
        pairs[kind] = tuple(pair for pair in product(able, props) if _allowed(*pair, split))  # type: ignore[index]
    countable = tuple(concept for concept in alone if concept.countable)
    colourable = tuple(concept for concept in countable if _colourable(concept.name))
    cast = Cast(alone, countable, colourable, pairs, (), split)
    return replace(cast, kinds=tuple(kind for kind in WEIGHTS if _possible(kind, cast)))


def _possible(kind: Kind, cast: Cast) -> bool:
    """Return whether there is at least one choice of concepts for a kind."""
    if kind in cast.pairs:
        return bool(cast.pairs[kind])
    if kind == "count":
        return bool(cast.countable)
    if kind == "coloured":
        return any(artwork.paintable(concept.code) for concept in cast.colourable)
    if kind == "two coloured":
        return any(
            len({*artwork.paintable(a.code), *artwork.paintable(b.code)}) > 1
            for a, b in product(cast.colourable, repeat=2)
            if _allowed(a.name, b.name, cast.split) and artwork.paintable(a.code) and artwork.paintable(b.code)
        )
    return kind == "one" or any(_allowed(a.name, b.name, cast.split) for a, b in product(cast.alone, repeat=2))


def _colourable(name: str) -> bool:
    return name not in never_coloured() and not colours.THINGS.keys() & name.split()


def _allowed(a: str, b: str, split: Split) -> bool:
    return a != b and is_held_out(a, b) == (split == "test")


def _things(kind: Kind, cast: Cast, rng: np.random.Generator) -> tuple[list[Thing], str | None]:
    """Place the things of a scene; return them and the relation of the first to the second."""
    if kind in CONTACTS:
        return _contact(kind, cast, rng), kind
    if kind == "one":
        return _alone(_pick(cast.alone, rng), None, rng), None
    if kind == "coloured":
        return _alone(*_pick_coloured(cast.colourable, rng), rng), None
    if kind == "count":
        return _count(cast, rng), None
    return _two(kind, cast, rng), RELATIONS[kind]


def _alone(concept: Concept, colour: str | None, rng: np.random.Generator) -> list[Thing]:
    size = rng.uniform(0.62, 0.9)
    slack = (0.96 - size) / 2
    x, y = 0.5 + rng.uniform(-slack, slack, 2)
    return fit([Part(concept.code, concept.name, colour, angle=rng.uniform(-6, 6))], around(x, y, size))


def _count(cast: Cast, rng: np.random.Generator) -> list[Thing]:
    concept, colour = _pick(cast.countable, rng), None
    if rng.random() < COLOURED_COUNTS:
        concept, colour = _pick_coloured(cast.colourable, rng)
    size, centres = COUNTS[int(rng.integers(2, 7))]
    if len(centres) == 3 and rng.random() < 0.4:
        size, centres = 0.29, [(0.18, 0.5), (0.5, 0.5), (0.82, 0.5)]
    size *= rng.uniform(0.9, 1.05)
    part, things = Part(concept.code, concept.name, colour), []
    for x, y in centres:
        dx, dy = rng.uniform(-0.015, 0.015, 2)
        things += fit([part], around(x + dx, y + dy, size))
    return things


def _two(kind: Kind, cast: Cast, rng: np.random.Generator) -> list[Thing]:
    """Place two different things side by side, one above the other, or a big and a small one."""
    parts = _coloured_pair(cast, rng) if kind == "two coloured" else _pair(cast, rng)
    return [thing for part, frame in zip(parts, _frames(kind, rng), strict=True) for thing in fit([part], frame)]


def _frames(kind: Kind, rng: np.random.Generator) -> tuple[Box, Box]:
    """Return boxes of the first and the second thing."""
    dx, dy, size = *rng.uniform(-0.02, 0.02, 2), rng.uniform(0.41, 0.46)
    if kind == "above":
        return around(0.5 + 3 * dx, 0.26, size), around(0.5 + 3 * dy, 0.74, size)
    if kind == "sizes":
        big, small = rng.uniform(0.58, 0.62), rng.uniform(0.25, 0.29)
        near, far = 0.03 + big / 2, 0.97 - small / 2
        first_box, second_box = around(near, 0.42 + dy, big), around(far, 0.78 + dy, small)
        return (first_box, second_box) if rng.random() < 0.5 else (_mirrored(first_box), _mirrored(second_box))
    sides = around(0.26, 0.5 + 3 * dx, size), around(0.74, 0.5 + 3 * dy, size)
    if kind == "two coloured" and rng.random() < 0.5:
        return sides[1], sides[0]
    return sides


def _mirrored(box: Box) -> Box:
    return 1 - box[2], box[1], 1 - box[0], box[3]


def _contact(kind: Kind, cast: Cast, rng: np.random.Generator) -> list[Thing]:
    """Place an animal with an instrument, a hat or a vehicle, facing either way."""
    animal, prop = cast.pairs[kind][rng.integers(len(cast.pairs[kind]))]
    parts = CONTACTS[kind][1](animal, prop)
    if rng.random() < 0.5:
        parts = mirror(parts)
    size = rng.uniform(0.84, 0.95)
    slack = (0.97 - size) / 2
    x, y = 0.5 + rng.uniform(-slack, slack, 2)
    return fit(parts, around(x, y, size))


def _pick(among: Sequence[Concept], rng: np.random.Generator) -> Concept:
    return among[int(rng.integers(len(among)))]


def _pick_coloured(among: Sequence[Concept], rng: np.random.Generator) -> tuple[Concept, str]:
    while True:  # here and below: `_possible` has checked that there is a choice
        concept = _pick(among, rng)
        names = artwork.paintable(concept.code)
        if names:
            return concept, names[rng.integers(len(names))]


def _pair(cast: Cast, rng: np.random.Generator) -> list[Part]:
    while True:
        one, other = _pick(cast.alone, rng), _pick(cast.alone, rng)
        if _allowed(one.name, other.name, cast.split):
            return [Part(one.code, one.name), Part(other.code, other.name)]


def _coloured_pair(cast: Cast, rng: np.random.Generator) -> list[Part]:
    while True:
        one, colour = _pick_coloured(cast.colourable, rng)
        other, second = _pick_coloured(cast.colourable, rng)
        if colour != second and _allowed(one.name, other.name, cast.split):
            return [Part(one.code, one.name, colour), Part(other.code, other.name, second)]
