"""How many images are drawn at a time: as many as memory holds, fewer where it turns out not to."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import torch

from ldm.checkpoint.parts import Parts
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.unet.config import UNetConfig

T = TypeVar("T")

MOST = {"cuda": 64, "cpu": 8}  # more images at a time are hardly faster
SHARE = {"cuda": 0.8, "cpu": 0.5}  # of the free memory that is planned with; on the CPU others want some as well
COPIES = 8  # of its widest map that a network holds while it computes: joined, normalised, activated, convolved
# Of a process' group, new and old: what it may take and what it has taken.
GROUPS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def automatic(parts: Parts, shape: tuple[int, int, int], rows: int, backward: bool = False, reserved: int = 0) -> int:
    """How many images of latents `shape` (C, h, w) are drawn at a time, each with `rows` rows of the U-Net.

    `backward` as in `image_memory`; `reserved` bytes will be taken for other things.
    """
    device = parts.device
    kind = "cuda" if device.type == "cuda" else "cpu"
    left = free_memory(device) - reserved
    fitting = SHARE[kind] * left / image_memory(parts, shape, rows, backward)
    return max(1, min(MOST[kind], int(fitting)))


def free_memory(device: torch.device) -> float:
    """Bytes that can still be had: on a GPU what PyTorch keeps unused counts, elsewhere the limits of a container."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    import psutil

    return min([psutil.virtual_memory().available, *_left_in_groups()])


def _left_in_groups(root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    for names in GROUPS:
        limit, taken = (root / name for name in names)
        if limit.is_file() and taken.is_file() and (most := limit.read_text().strip()).isdigit():
            yield int(most) - int(taken.read_text())


def image_memory(parts: Parts, shape: tuple[int, int, int], rows: int, backward: bool = False) -> float:
    """Bytes that one image takes at most beside the weights, in the U-Net or in the decoder.

    `backward` is for a gradient that goes back through both, whose maps are then all kept.
    """
    size = parts.autoencoder.dtype.itemsize if parts.autoencoder.config.kind != "identity" else 0
    unet = rows * unet_width(parts.unet.config, backward) * next(parts.unet.parameters()).element_size()
    decoder = decoder_width(parts.autoencoder.config, backward) * size
    return shape[1] * shape[2] * (unet + decoder if backward else max(unet, decoder))


def unet_width(config: UNetConfig, backward: bool = False) -> float:
    """Numbers that a row of the U-Net takes for each position of its latents: what it skips, and its widest map."""
    channels = config.block_out_channels
    maps = [width / 4**level for level, width in enumerate(channels)]
    if backward:
        return COPIES * 2 * (config.layers_per_block + 1) * sum(maps)  # on the way down and on the way up
    return (config.layers_per_block + 1) * sum(maps) + 2 * COPIES * max(maps)  # skips join, twice the width


def decoder_width(config: AutoencoderConfig, backward: bool = False) -> float:
    """Numbers that the decoder takes for each position of the latents: those of its widest map, or of all."""
    channels, factor = config.block_out_channels, config.downsampling_factor
    wider = (*channels[1:], channels[-1])  # a level is entered with the channels of the coarser one
    maps = [width * (factor / 2**level) ** 2 for level, width in enumerate(wider)]
    return COPIES * ((config.layers_per_block + 1) * sum(maps) if backward else max(maps))


def split(numbers: Iterable[int], size: int, length: Callable[[int], int]) -> list[list[int]]:
    """The numbers in order, in batches of at most `size`, each of one `length`."""
    runs = (list(run) for _, run in groupby(numbers, key=length))
    return [run[first : first + size] for run in runs for first in range(0, len(run), size)]


def unless_full(work: Callable[[], T]) -> T | None:
    """What `work` returns, or None where memory did not suffice; all that it had taken is free again."""
    try:
        return work()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    gc.collect()  # frames of the failed work may stand in circles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether it says so, on a GPU, on the CPU, or in a library of matrices that wanted workspace."""
    told: Sequence[str] = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in told)
