"""Keep freed memory in the process between the steps of a computation that need about the same amount."""

from __future__ import annotations

import ctypes
from contextlib import suppress

# Of malloc.h in glibc, for `mallopt`.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for the next step to take again; where there is no glibc, do nothing.

    By its defaults glibc gives large blocks back to the system when they are freed and fetches new ones, whose pages
    the system fills with zeros one by one: about a tenth of a step of training on a CPU, up to a fifth of drawing where
    maps are large. The process then holds what it took at its peak until it ends.
    """
    with suppress(OSError, AttributeError):  # no such function, or no C library of that kind
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, -1)  # never
        mallopt(TOP_PAD, 2**26)
