"""What is said to the user in one line: mistakes to mend, and notes."""

from __future__ import annotations


class UserError(Exception):
    """What was wrong, where, and what to do, in one line; the command line prints it and exits with status 2."""


class UserNote(UserWarning):
    """What a user should know though the work goes on; the command line prints it on standard error."""
