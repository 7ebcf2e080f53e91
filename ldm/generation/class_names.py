"""Classes by their names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from ldm.errors import UserError


def class_number(given: int | str, count: int, names: Sequence[str], owner: str) -> int:
    """The number of a class given by its name or its number; UserError for one that `owner` does not have."""
    if isinstance(given, str) and given in names:
        return names.index(given)
    number = int(given) if isinstance(given, int) or given.isdecimal() else -1
    if 0 <= number < count:
        return number
    near = difflib.get_close_matches(str(given), names, n=1)
    named = f", such as {', '.join(names[:3])}" if names else ""
    hint = f"; did you mean {near[0]!r}?" if near else f"{named}"
    raise UserError(f"class {given}: {owner} has classes 0 to {count - 1}{hint}")
