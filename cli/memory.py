"""How the C library hands out memory in a process that draws."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's names, malloc.h
LARGEST = 2**31 - 1  # an int


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next tensor, which the kernel would otherwise have to zero page by page.

    That took up to a fifth of the time where maps are large. The memory of the process stays at its peak until it ends.
    Other C libraries are left alone.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "gnu_get_libc_version"):
        library.mallopt(MMAP_THRESHOLD, 2**30)
        library.mallopt(TRIM_THRESHOLD, LARGEST)
