"""The concepts of scenes, most recognisable first, and the pairs that are held out of training.

The tables beside this file are written by hand: `concepts.csv` (ranking and names), `anchors.yaml` (mouths, heads,
seats) and `words.yaml` (narrower names).
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from ldm.errors import UserError

HELD_OUT_PERCENT = 10
# The README's prompt is a test of composition.
ALWAYS_HELD_OUT = frozenset({frozenset({"dog", "trumpet"})})


@dataclass(frozen=True)
class Concept:
    """A thing with artwork: its code point, its name, and the words for one and for several."""

    code: str  # as in the artwork's file names: hexadecimal code points joined by hyphens
    name: str
    plural: str
    phrase: str  # with its article: `a dog`, `a bunch of grapes`
    countable: bool


@cache
def concepts() -> tuple[Concept, ...]:
    """Return all concepts by rank: the first N are the N most recognisable ones."""
    return tuple(_concept(row) for row in csv.DictReader(table_text("concepts.csv").splitlines()))


@cache
def named(name: str) -> Concept:
    """Look up a concept by name; KeyError if there is none."""
    return _by_name()[name]


def first(count: int | None) -> tuple[Concept, ...]:
    """Return the `count` most recognizable concepts, all for None.

    Raises:
        UserError: if there are fewer.
    """
    everything = concepts()
    if count is not None and not 1 <= count <= len(everything):
        raise UserError(f"the number of concepts is {count}: the built-in scenes have 1 to {len(everything)}")
    return everything[:count]


@cache
def anchors(role: str) -> dict[str, dict[str, Any]]:
    """Return points of contact by name for `animals`, `instruments`, `hats` or `vehicles`, in units of 1/36 side."""
    table: dict[str, dict[str, Any]] = yaml.safe_load(table_text("anchors.yaml"))[role]
    return table


@cache
def hyponyms() -> dict[str, list[str]]:
    """Narrower or familiar names by concept; a name listed twice is twice as likely."""
    table: dict[str, list[str]] = yaml.safe_load(table_text("words.yaml"))["hyponyms"]
    return table


@cache
def shared_names() -> frozenset[str]:
    """Return the narrower names that more than one concept has."""
    found = Counter(name for names in hyponyms().values() for name in set(names))
    return frozenset(name for name, times in found.items() if times > 1)


@cache
def never_coloured() -> frozenset[str]:
    """Return names of the concepts whose colour captions do not mention."""
    return frozenset(yaml.safe_load(table_text("words.yaml"))["never_coloured"])


@cache
def is_held_out(a: str, b: str) -> bool:
    """Return whether the concepts `a` and `b`, in either order, never occur together in the train split."""
    if frozenset({a, b}) in ALWAYS_HELD_OUT:
        return True
    digest = hashlib.blake2b("+".join(sorted((a, b))).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 100 < HELD_OUT_PERCENT


def with_article(words: str) -> str:
    """Prefix `a` or `an`, by the sound of the first word."""
    first_word = words.split()[0]
    silent_h = first_word.startswith(("hour", "honest"))
    sounds_like_you = first_word.startswith(("uni", "ufo", "ukulele", "one", "euro"))
    vowel = silent_h or (first_word[0] in "aeiou" and not sounds_like_you)
    return f"{'an' if vowel else 'a'} {words}"


def plural_of(name: str) -> str:
    """Return the regular plural of a name's last word."""
    if name.endswith(("s", "x", "z", "ch", "sh")):
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


def _concept(row: dict[str, str]) -> Concept:
    name, phrase = row["name"], row["phrase"]
    return Concept(row["code"], name, row["plural"] or plural_of(name), phrase or with_article(name), not phrase)


@cache
def _by_name() -> dict[str, Concept]:
    return {concept.name: concept for concept in concepts()}


def table_text(name: str) -> str:
    """Read a table."""
    return files("ldm.data.scenes").joinpath(name).read_text(encoding="utf-8")


def tables_digest() -> str:
    """Digest of the tables."""
    digest = hashlib.blake2b(digest_size=8)
    for name in ("concepts.csv", "anchors.yaml", "words.yaml"):
        digest.update(table_text(name).encode())
    return digest.hexdigest()
