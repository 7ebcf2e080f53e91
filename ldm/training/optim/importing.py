"""Import what a configuration file or `--set` names by a dotted Python name, such as `torch.optim.Adafactor`."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

from ldm.errors import UserError


def import_name(name: str, option: str, known: Iterable[str]) -> Any:
    """Import a callable by its dotted name.

    Raises:
        UserError: if there is none; names the option and its built-in values.
    """
    module, _, attribute = name.rpartition(".")
    if not module:
        raise UserError(f"{option} {name!r} is unknown: use {', '.join(known)} or a dotted name such as package.Name")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{option} {name!r} cannot be imported: {error}") from error
    if not callable(found):
        raise UserError(f"{option} {name!r} is {type(found).__name__}, not a class or function")
    return found
