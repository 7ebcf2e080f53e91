"""Packages of the extra `eval`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ldm.errors import UserError, install_extra


def import_optional(module: str, metrics: str) -> Any:
    """Import a module that `metrics` need.

    Raises:
        UserError: if its package is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("_", "-")
        raise UserError(f"{metrics} need {package}: {install_extra('eval')}") from error
