"""Peak memory of a piece of work."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
PROCESS = Path("/proc/self")
# Options of mallopt by their numbers in malloc.h, and glibc's adaptive maximum.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
DEFAULTS = {TRIM_THRESHOLD: 2**26, TOP_PAD: 2**17, MMAP_THRESHOLD: 2**25, MMAP_MAX: 2**16}


def with_peak(work: Callable[[], T], device: torch.device) -> tuple[T, int | None]:
    """Return the result of `work` and its peak memory in bytes, without memory held before; None if unknown.

    On a GPU this is the memory of tensors, otherwise the resident memory of the process on Linux.
    """
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = work()
        return result, torch.cuda.max_memory_allocated(device) - before
    if not (PROCESS / "clear_refs").exists():
        return work(), None
    _trim()
    (PROCESS / "clear_refs").write_text("5")  # resets the peak: proc(5)
    before = _status("VmRSS")
    result = work()
    return result, _status("VmHWM") - before


def reset_allocator() -> None:
    """Reset glibc's allocator to its default behaviour, and return its freed memory to the system.

    By default its thresholds adapt up to 32 MiB and twice that (mallopt(3)); once set they are fixed, here to these
    maxima. Other C libraries are not changed.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "gnu_get_libc_version"):
        for option, value in DEFAULTS.items():
            library.mallopt(option, value)
        _trim()


def _trim() -> None:
    """Return freed memory that the C library keeps to the system, since its reuse would hide allocations."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _status(name: str) -> int:
    [line] = [line for line in (PROCESS / "status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024
