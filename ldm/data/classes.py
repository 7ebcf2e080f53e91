"""The class of an image: a number, a name, or the name of its folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

from ldm.data.broken import UnreadableError
from ldm.errors import UserError

USUAL = ("label", "class", "class_label")  # the first that exists is used where no field is configured
FOLDER = "folder"  # value of data.class_field: the first folder in an image's name


class Labels:
    """The classes of images: numbers, or names, numbered by their positions in `names`."""

    def __init__(self, values: Sequence[Any], names: Sequence[str] | None = None) -> None:
        """Take `values`, one class per image; `names` defaults to the distinct values in alphabetical order."""
        self.values = values
        found = {value for value in values if isinstance(value, str)} - {""} if names is None else ()
        self.names = tuple(sorted(found) if names is None else names)
        self._numbers = {name: number for number, name in enumerate(self.names)}

    def number(self, index: int, image: str) -> int:
        """Return the class of an image; UnreadableError if it has none."""
        return class_number(self.values[index], image, self._numbers)


def class_number(value: Any, image: str, names: dict[str, int] | None = None) -> int:
    """Convert a class to its number; UnreadableError if it is missing or not a number."""
    if value is None or value == "":
        raise UnreadableError(image, "it has no class")
    if names and isinstance(value, str):
        return names[value]
    try:
        number = int(value)
    except (TypeError, ValueError):
        raise UnreadableError(image, f"its class {value!r} is not a number") from None
    if number < 0:
        raise UnreadableError(image, f"its class {number} is negative")
    return number


def choose_field(columns: Iterable[str], asked: str | None, data: str) -> str | None:
    """Return the column of a table that holds classes, None if there is none.

    Raises:
        UserError: if the one asked for is missing.
    """
    columns = list(columns)
    if asked is not None and asked not in columns:
        raise UserError(f"data {data!r} has no field {asked!r} (data.class_field), only {', '.join(columns)}")
    return asked or next((name for name in USUAL if name in columns), None)


def of_folders(names: Sequence[str], required: bool = True) -> Labels | None:
    """Return classes by the first folder in each image's name, as in ImageNet.

    An image in no folder is a UserError where classes are `required`; otherwise there are none.
    """
    bare = next((name for name in names if len(PurePath(name).parts) < 2), None)
    if bare is None:
        return Labels([PurePath(name).parts[0] for name in names])
    if required:
        raise UserError(f"data.class_field is folder but the image {bare} is in no folder of a class")
    return None
