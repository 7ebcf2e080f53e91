"""Errors and notes that the command line prints in one line."""

from __future__ import annotations


class UserError(Exception):
    """An error that the user can fix; the message says what is wrong, where, and what to do.

    The command line prints it in one line and exits with status 2.
    """


class UserNote(UserWarning):
    """A warning that the command line prints in one line on standard error."""


def install_extra(extra: str) -> str:
    """Return the commands that install an optional dependency group, from an index and in a checkout."""
    return f'pip install "ldm-diffusion[{extra}]", or pip install ".[{extra}]" in a checkout'
