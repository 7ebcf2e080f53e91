"""Captions of a scene: short and correct, with a small vocabulary."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ldm.data.scenes.vocabulary import anchors, hyponyms, named, plural_of, shared_names, with_article

if TYPE_CHECKING:
    from ldm.data.scenes.scene import Background, Scene, Thing

NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
LANDSCAPES = {
    "grass": ("on grass under a blue sky", "on grass"),
    "beach": ("on the beach", "on the beach"),
    "snow": ("on snow", "in the snow"),
    "night": ("at night", "under the stars"),
    "desert": ("in the desert", "in the desert"),
}
STYLES = ("an emoji of", "a picture of", "a drawing of", "a cartoon of")


def captions(scene: Scene, exact: bool = False) -> list[str]:
    """Return three to five captions, as a pure function of the scene.

    Args:
        exact: use only captions that state the relation of two things, and names that only one concept has (not `hat`).
    """
    digest = hashlib.blake2b(json.dumps(scene.to_record(), sort_keys=True).encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "little"))
    full, short = places(scene.background)
    plain, *others = _subjects(scene, rng, exact)
    found = [_join(plain, full), _join(others[0], full)]
    found += [_join(other, short if rng.random() < 0.5 else "") for other in others[1:]]
    found.append(_join(plain, ""))
    style = STYLES[rng.integers(len(STYLES))]
    found += [f"{style} {_join(plain, short)}", f"{style} {plain}"]
    unique = list(dict.fromkeys(found))
    kept = sorted(rng.permutation(np.arange(1, len(unique)))[: rng.integers(2, 5)])
    return [unique[0], *(unique[i] for i in kept)]


def places(background: Background) -> tuple[str, str]:
    """Return two phrases for the background, the plainest first; white is not mentioned in it."""
    if background.kind == "landscape":
        return LANDSCAPES[background.name]
    phrase = f"on {with_article(background.name)} background"
    return ("" if background.name == "white" else phrase), phrase


def _join(subject: str, place: str) -> str:
    return f"{subject} {place}".strip()


def _subjects(scene: Scene, rng: np.random.Generator, exact: bool) -> list[str]:
    """Return phrases for the things of the scene, the plainest first, without the background."""
    one, other = scene.things[0], scene.things[-1]
    if scene.kind == "count":
        return _counted(scene.things, _narrow_name(one, rng, exact))
    narrow = _phrase(one, _narrow_name(one, rng, exact))
    if scene.kind in ("one", "coloured"):
        return [_phrase(one), narrow, narrow]
    if scene.relation in ("playing", "wearing", "riding"):
        return _acting(one, other, scene.relation, narrow)
    if scene.relation == "bigger than":
        return _sized(one, other)
    return _related(one, other, str(scene.relation), narrow, exact)


def _counted(things: Sequence[Thing], narrow: str) -> list[str]:
    thing, count = things[0], len(things)
    plural = _coloured(named(thing.name).plural, thing.colour)
    said = [f"{NUMBERS[count]} {plural}", f"{count} {plural}"]
    if narrow != thing.name:
        said.append(f"{NUMBERS[count]} {_coloured(plural_of(narrow), thing.colour)}")
    return said


def _acting(animal: Thing, prop: Thing, verb: str, narrow: str) -> list[str]:
    """Describe an animal doing something with a prop; it sits inside some vehicles."""
    actor, thing = _phrase(animal), _phrase(prop)
    if verb == "riding":
        verb = anchors("vehicles")[prop.name].get("verb", verb)
    said = [f"{actor} {verb} {thing}", f"{narrow} {verb} {thing}", f"{actor} is {verb} {thing}"]
    if verb == "playing":
        said.append(f"{narrow} playing the {prop.name}")
    if verb == "wearing":
        said.append(f"{narrow} with {thing}")
    return said


def _related(one: Thing, other: Thing, relation: str, narrow: str, exact: bool) -> list[str]:
    a, b = _phrase(one), _phrase(other)
    if exact and relation == "left of":
        return [f"{a} to the left of {b}", f"{b} to the right of {a}", f"{narrow} to the left of {b}"]
    if relation == "left of":
        return [f"{a} to the left of {b}", f"{b} to the right of {a}", f"{narrow} next to {b}", f"{narrow} and {b}"]
    if relation == "above":
        return [f"{a} above {b}", f"{b} below {a}", f"{narrow} over {b}"]
    return [f"{a} next to {b}", f"{b} next to {a}", f"{narrow} and {b}"]


def _sized(one: Thing, other: Thing) -> list[str]:
    big, small = _phrase(one, adjective="big"), _phrase(other, adjective="small")
    return [f"{big} and {small}", f"{small} and {big}", f"{big} next to {small}"]


def _narrow_name(thing: Thing, rng: np.random.Generator, exact: bool) -> str:
    """Return a narrower or more familiar name, or the thing's own; with `exact` one that no other concept shares."""
    names = hyponyms().get(thing.name, [thing.name])
    if exact:
        names = [name for name in names if name not in shared_names()] or [thing.name]
    return names[rng.integers(len(names))]


def _coloured(words: str, colour: str | None) -> str:
    return f"{colour} {words}" if colour else words


def _phrase(thing: Thing, name: str | None = None, adjective: str | None = None) -> str:
    """Return the thing with its article: `a dog`, `a blue car`, `a big slice of watermelon`."""
    concept = named(thing.name)
    words = concept.phrase.split(" ", 1)[1] if name in (None, thing.name) else str(name)
    return with_article(_coloured(_coloured(words, thing.colour), adjective))
