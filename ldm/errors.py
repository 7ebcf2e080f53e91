"""The one exception that stands for a mistake the user can mend."""

from __future__ import annotations


class UserError(Exception):
    """What was wrong, where, and what to do, in one line; the command line prints it and exits with status 2."""
