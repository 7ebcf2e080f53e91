"""Reading the configuration files of other libraries without ignoring any of their fields.

An unsupported value of a field raises an error that names the field. An absent field has the default of the class that
wrote the file, which may differ from the default in `ldm.config`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.storage.store import load_json

DIFFUSERS_VERSION = "0.32.0"  # whose layout is written; later versions read it
# Added to a network's `config.json` by `EMAModel.save_pretrained` of diffusers; they do not change the network.
EMA_FIELDS = frozenset(
    ("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup")
)
EXTRA = "_ldm"  # options that only ldm has; diffusers ignores keys with an underscore

Fields = dict[str, Any]
Fixed = dict[str, tuple[Any, ...]]  # fields that must have one of the given values where they are present


def load_fields(path: Path) -> Fields:
    """Read the fields of a JSON file.

    Raises:
        UserError: if it is missing, damaged or not a mapping.
    """
    fields = load_json(path)
    if not isinstance(fields, dict):
        raise UserError(f"{path} is not a JSON object: it is damaged, download or copy it again")
    return fields


def known_fields(fields: Fields, defaults: Fields, fixed: Fixed, where: Path) -> Fields:
    """Return the fields named in `defaults`, as given or by default.

    Raises:
        UserError: for an unknown field that is set, a fixed field with another value, and a field of another type
            than its default.
    """
    check_fixed(fields, fixed, where)
    for name, value in fields.items():
        known = name in defaults or name in fixed or name in EMA_FIELDS or name.startswith("_")
        if not known and value is not None:
            owner = f" of {fields['_class_name']}" if "_class_name" in fields else ""
            raise UserError(f"{where}: ldm does not know the field {name}{owner} (it is {value!r})")
        if isinstance(defaults.get(name), list) and not isinstance(value, list):
            raise refused(name, value, where)
        if isinstance(defaults.get(name), bool) and not isinstance(value, bool | None):  # a string would count as true
            raise refused(name, value, where)
    return defaults | {name: value for name, value in fields.items() if name in defaults}


def check_fixed(fields: Fields, fixed: Fixed, where: Path) -> None:
    """Raise UserError for a field with a value that is not allowed."""
    for name, values in fixed.items():
        if name in fields and fields[name] not in values:
            raise refused(name, fields[name], where)


def expect_class(fields: Fields, names: tuple[str, ...], where: Path) -> None:
    """Raise UserError for the fields of a class that is not in `names`."""
    if fields.get("_class_name") not in names:
        raise UserError(f"{where} is of a {fields.get('_class_name')}; ldm loads {', '.join(names)} here")


def one_value(value: Any, name: str, where: Path) -> Any:
    """Return the value that a list repeats, such as both sides of a square.

    Raises:
        UserError: if the values differ.
    """
    values = value if isinstance(value, list) else [value]
    if not values or values[0] is None or any(other != values[0] for other in values):
        raise refused(name, value, where)
    return values[0]


def extra(fields: Fields) -> Fields:
    """Return the options that only ldm has, if ldm wrote the file."""
    found = fields.get(EXTRA)
    return found if isinstance(found, dict) else {}


def refused(name: str, value: Any, where: Path) -> UserError:
    """Return the error for an unsupported value of a field."""
    return UserError(f"{where}: the field {name} is {value!r}, which ldm does not support")
