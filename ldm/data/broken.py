"""Samples that cannot be read: how they are told of, and how others take their places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ldm.errors import UserError

TRIES = 100  # draws for one slot of a batch before the data as a whole is given up

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Broken:
    """A sample that was skipped."""

    name: str  # the file's, or `shard.tar:key`
    reason: str


class UnreadableError(UserError):
    """A sample that cannot be used, whose name and fault a person is told."""

    def __init__(self, name: str, fault: BaseException | str) -> None:
        words = getattr(fault, "strerror", None) or str(fault) or type(fault).__name__
        self.broken = Broken(name, " ".join(words.split())[:200])
        super().__init__(f"{name} cannot be read: {self.broken.reason}")

    def __reduce__(self) -> tuple[type[UnreadableError], tuple[str, str]]:
        return UnreadableError, (self.broken.name, self.broken.reason)  # it may cross from a loader process


def first_readable(
    item: Item, another: Callable[[int], Item], make: Callable[[Item], Made]
) -> tuple[Made, list[Broken]]:
    """What `make` makes of `item`, or, while that is unreadable, of `another(1)`, `another(2)`...; what was skipped.

    `another` draws by seed, step and slot, so every number of processes fills a slot alike. Raises UserError after 100
    failures in a row.
    """
    broken: list[Broken] = []
    while True:
        try:
            return make(item), broken
        except UnreadableError as error:
            broken.append(error.broken)
            if len(broken) == TRIES:
                raise UserError(f"{TRIES} samples in a row cannot be used, the last of them: {error}") from error
            item = another(len(broken))
