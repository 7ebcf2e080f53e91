"""How much memory a piece of work takes while it runs."""

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
# What glibc comes to by itself: mallopt's options by their numbers in malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
USUAL = {TRIM_THRESHOLD: 2**26, TOP_PAD: 2**17, MMAP_THRESHOLD: 2**25, MMAP_MAX: 2**16}


def with_peak(work: Callable[[], T], device: torch.device) -> tuple[T, int | None]:
    """What `work` returns, and the bytes it took at most beyond what was held before; None where that is unknown.

    On a GPU they are those of its tensors, elsewhere those of the process, as Linux counts them.
    """
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        made = work()
        return made, torch.cuda.max_memory_allocated(device) - before
    if not (PROCESS / "clear_refs").exists():
        return work(), None
    _give_back()
    (PROCESS / "clear_refs").write_text("5")  # the peak is from now on that of what follows: proc(5)
    before = _status("VmRSS")
    made = work()
    return made, _status("VmHWM") - before


def usual_memory() -> None:
    """Let glibc hand out memory as it does in a process that has set nothing, and start with none kept.

    Its thresholds then grow by themselves to 32 MiB and twice that (mallopt(3)); once set they are fixed, here to that.
    Other C libraries are left alone.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "gnu_get_libc_version"):
        for option, value in USUAL.items():
            library.mallopt(option, value)
        _give_back()


def _give_back() -> None:
    """Return to the system what the C library keeps of freed memory, which would hide what is taken anew."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _status(name: str) -> int:
    [line] = [line for line in (PROCESS / "status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024
