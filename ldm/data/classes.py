"""The class of an image, in whatever way people write it down: as a number, as a name, as the name of a folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

from ldm.data.broken import UnreadableError
from ldm.errors import UserError

USUAL = ("label", "class", "class_label")  # the first of these that there is, where no field is configured
FOLDER = "folder"  # for data.class_field: the first folder in an image's name


class Labels:
    """The classes of some images: numbers, or names, whose numbers are their places in `names`."""

    def __init__(self, values: Sequence[Any], names: Sequence[str] | None = None) -> None:
        """`values` has one an image; `names` are found among them, in alphabetical order, where none are given."""
        self.values = values
        found = {value for value in values if isinstance(value, str)} - {""} if names is None else ()
        self.names = tuple(sorted(found) if names is None else names)
        self._numbers = {name: number for number, name in enumerate(self.names)}

    def number(self, index: int, image: str) -> int:
        """The class of an image; UnreadableError, which names it, where it has none."""
        return class_number(self.values[index], image, self._numbers)


def class_number(value: Any, image: str, names: dict[str, int] | None = None) -> int:
    """The number that a value stands for, by its name or as it is; UnreadableError, which names the image."""
    if value is None or value == "":
        raise UnreadableError(image, "it has no class")
    if names and isinstance(value, str):
        return names[value]
    try:
        number = int(value)
    except (TypeError, ValueError):
        raise UnreadableError(image, f"its class {value!r} is no number") from None
    if number < 0:
        raise UnreadableError(image, f"it has no class, but {number}")
    return number


def choose_field(columns: Iterable[str], asked: str | None, data: str) -> str | None:
    """The column of a table that holds classes, None where there is none; UserError for one that is not there."""
    columns = list(columns)
    if asked is not None and asked not in columns:
        raise UserError(f"data {data!r} has no field {asked!r} (data.class_field), only {', '.join(columns)}")
    return asked or next((name for name in USUAL if name in columns), None)


def of_folders(names: Sequence[str], asked: bool = True) -> Labels | None:
    """Classes by the first folder in each image's name, as ImageNet has it; None where an image lies in none.

    UserError then, if that is what was `asked` for.
    """
    bare = next((name for name in names if len(PurePath(name).parts) < 2), None)
    if bare is None:
        return Labels([PurePath(name).parts[0] for name in names])
    if asked:
        raise UserError(f"data.class_field folder: the image {bare} lies in no folder of a class")
    return None


def no_classes(data: str) -> UserError:
    """The error of data that tells no classes."""
    return UserError(
        f"data {data!r} tells no classes: data.class_field names a column or JSON field, or `folder` for images "
        "in a folder for each class"
    )
