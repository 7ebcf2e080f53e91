"""Reading other libraries' configuration files: nothing that is asked for is passed over in silence.

A field that asks for something we do not have is refused by its name. A field that is absent has the default of the
class that wrote it, so the defaults that matter are theirs, not those of `ldm.config`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.storage.store import load_json

DIFFUSERS_VERSION = "0.32.0"  # whose layout is written; later ones read it
EXTRA = "_ldm"  # what only we know; diffusers skips keys with an underscore

Fields = dict[str, Any]
Fixed = dict[str, tuple[Any, ...]]  # fields that must have one of the given values where they are present


def load_fields(path: Path) -> Fields:
    """The fields of a JSON file; UserError when it is missing, damaged or no mapping."""
    fields = load_json(path)
    if not isinstance(fields, dict):
        raise UserError(f"{path} holds no fields: it is damaged, get it anew")
    return fields


def known_fields(fields: Fields, defaults: Fields, fixed: Fixed, where: Path) -> Fields:
    """The fields in `defaults`, as given or by default.

    Raises UserError for a fixed field with another value, one of another kind than its default, and an unknown one
    that is set.
    """
    check_fixed(fields, fixed, where)
    for name, value in fields.items():
        if name not in defaults and name not in fixed and not name.startswith("_") and value is not None:
            owner = f" of {fields['_class_name']}" if "_class_name" in fields else ""
            raise UserError(f"{where}: ldm does not know the field {name}{owner} (it is {value!r})")
        if isinstance(defaults.get(name), list) and not isinstance(value, list):
            raise refused(name, value, where)
        if isinstance(defaults.get(name), bool) and not isinstance(value, bool | None):  # a word would count as true
            raise refused(name, value, where)
    return defaults | {name: value for name, value in fields.items() if name in defaults}


def check_fixed(fields: Fields, fixed: Fixed, where: Path) -> None:
    """Raise UserError for a field that has none of its allowed values."""
    for name, values in fixed.items():
        if name in fields and fields[name] not in values:
            raise refused(name, fields[name], where)


def expect_class(fields: Fields, names: tuple[str, ...], where: Path) -> None:
    """Raise UserError for the configuration of another class."""
    if fields.get("_class_name") not in names:
        raise UserError(f"{where} is of a {fields.get('_class_name')}; ldm loads {', '.join(names)} here")


def one_value(value: Any, name: str, where: Path) -> Any:
    """The value that a list repeats, such as both sides of a square; UserError when there is no such value."""
    values = value if isinstance(value, list) else [value]
    if not values or values[0] is None or any(other != values[0] for other in values):
        raise refused(name, value, where)
    return values[0]


def key_of(table: dict[str, str], name: str, fields: Fields, where: Path) -> str:
    """Our name for the value of a field; UserError when we have none."""
    for ours, theirs in table.items():
        if theirs == fields[name]:
            return ours
    raise refused(name, fields[name], where)


def extra(fields: Fields) -> Fields:
    """What only we know, where the file is ours."""
    found = fields.get(EXTRA)
    return found if isinstance(found, dict) else {}


def refused(name: str, value: Any, where: Path) -> UserError:
    """The error for a field whose value we cannot follow."""
    return UserError(f"{where}: the field {name} is {value!r}, which ldm cannot do")
