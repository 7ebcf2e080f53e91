"""Progress of long work: a bar with time left on a terminal, one plain line elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def track(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """Yield the items, and show how many of `total` are done."""
    if not sys.stderr.isatty():
        print(f"{description}: {total:,}", file=sys.stderr)
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(items, description, total, console=Console(stderr=True), transient=True)
