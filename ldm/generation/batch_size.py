"""Automatic batch sizes for sampling: as large as free memory allows, smaller after an out-of-memory error."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import torch

from ldm.checkpoint.parts import Parts
from ldm.models.cost import image_memory

T = TypeVar("T")

MOST = {"cuda": 64, "cpu": 8}  # larger batches are hardly faster
USABLE = {"cuda": 0.8, "cpu": 0.5}  # fraction of the free memory to use; other processes share a CPU's memory
# Limit and usage of a control group, versions 2 and 1.
CGROUP_FILES = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def automatic(parts: Parts, shape: tuple[int, int, int], rows: int, backward: bool = False, reserved: int = 0) -> int:
    """Return how many images to generate at a time.

    Args:
        shape: latents (C, h, w) of an image.
        rows: rows in the U-Net's batch for each image.
        backward: whether a gradient flows through both networks.
        reserved: bytes that will be taken for other things.
    """
    kind = "cuda" if parts.device.type == "cuda" else "cpu"
    one = image_memory(parts.unet, parts.autoencoder, shape, rows, backward)
    return max(1, min(MOST[kind], int(USABLE[kind] * (free_memory(parts.device) - reserved) / one)))


def free_memory(device: torch.device) -> float:
    """Return the free bytes: on a GPU with PyTorch's unused cache, elsewhere within the limits of the container."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    import psutil

    return min([psutil.virtual_memory().available, *_left_in_cgroups()])


def _left_in_cgroups(root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    for names in CGROUP_FILES:
        limit, usage = (root / name for name in names)
        if limit.is_file() and usage.is_file() and (most := limit.read_text().strip()).isdigit():
            yield int(most) - int(usage.read_text())


def split(numbers: Iterable[int], size: int, length: Callable[[int], int]) -> list[list[int]]:
    """Split numbers, in order, into batches of at most `size` with equal `length`."""
    runs = (list(run) for _, run in groupby(numbers, key=length))
    return [run[first : first + size] for run in runs for first in range(0, len(run), size)]


def unless_full(work: Callable[[], T]) -> T | None:
    """Return the result of `work`, or None after an out-of-memory error, with its memory freed."""
    try:
        return work()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    gc.collect()  # frames of the failed call may be in reference cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether memory ran out, on a GPU, on the CPU, or for the workspace of cuBLAS."""
    messages = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(message in str(error) for message in messages)
