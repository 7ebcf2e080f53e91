"""Keep freed memory in the process between the steps of a computation that need about the same amount."""

from __future__ import annotations

import ctypes
from contextlib import suppress

# Of malloc.h in glibc, for `mallopt`.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Keep freed memory in this process for the next step; without glibc, do nothing.

    By default glibc returns large freed blocks to the system and requests new ones, whose pages the system fills with
    zeros: about a tenth of a training step on a CPU, and up to a fifth of sampling with large feature maps. The process
    then keeps its peak memory until it ends.
    """
    with suppress(OSError, AttributeError):  # no such function, or no C library of that kind
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, -1)  # never
        mallopt(TOP_PAD, 2**26)
