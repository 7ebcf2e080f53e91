"""Batch sizes: as many images as the free memory holds, and fewer after an out-of-memory error."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ldm.checkpoint.pipeline import Pipeline
from ldm.conditioning.text.composition import Composed
from ldm.errors import UserError
from ldm.generation.request import Request, Subject
from ldm.models.cost import image_memory

if TYPE_CHECKING:
    from ldm.generation.text_to_image import TextToImage

Shape = tuple[int, int, int]

MOST = {"cuda": 64, "cpu": 8}  # larger batches are hardly faster
SHARE = {"cuda": 0.8, "cpu": 0.5}  # of the free memory that is used; on a CPU other processes need some as well
# Files with limit and usage of a process' control group, version 2 and version 1.
GROUPS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def batches(pipe: TextToImage, request: Request, shape: Shape, numbers: Sequence[int]) -> list[list[int]]:
    """Split indices of a request's images into batches, each with contexts of one length.

    `shape` (C, h, w) is the shape of an image's latents.
    """
    size, images = request.batch_size, request.images
    if size is None:
        rows = max((_rows(images[number][0], request) for number in numbers), default=1)
        size = automatic(pipe.pipeline, shape, rows, request.clip is not None, pipe.pending)
    return split(numbers, size, lambda number: pipe.pipeline.length(images[number][0], request))


def automatic(pipeline: Pipeline, shape: Shape, rows: int, backward: bool = False, reserved: int = 0) -> int:
    """Return how many images fit the free memory, each with latents of `shape` (C, h, w) and `rows` rows of the U-Net.

    With `backward`, gradients flow through both networks; `reserved` bytes are needed for other things.
    """
    kind = "cuda" if pipeline.device.type == "cuda" else "cpu"
    one = image_memory(pipeline.denoiser, pipeline.autoencoder, shape, rows, backward)
    return max(1, min(MOST[kind], int(SHARE[kind] * (free_memory(pipeline.device) - reserved) / one)))


def free_memory(device: torch.device) -> float:
    """Return free bytes, with PyTorch's unused cache on a GPU, and within a container's limits on a CPU."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    import psutil

    return min([psutil.virtual_memory().available, *_free_in_groups()])


def _free_in_groups(root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    for names in GROUPS:
        limit, used = (root / name for name in names)
        if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdigit():
            yield int(most) - int(used.read_text())


def _rows(subject: Subject, request: Request) -> int:
    """Return the rows of an image in the U-Net's batch: one for each text, and one to guide away from."""
    if isinstance(subject, Composed):
        return len(subject.parts) + 1
    if request.image_guidance_scale not in (None, 1):
        return 3
    return 1 if request.guidance_scale == 1 else 2


def split(numbers: Iterable[int], size: int, length: Callable[[int], int]) -> list[list[int]]:
    """Split numbers in order into batches of at most `size` numbers of equal `length`."""
    runs = (list(run) for _, run in groupby(numbers, key=length))
    return [run[first : first + size] for run in runs for first in range(0, len(run), size)]


def check_out_of_memory(error: RuntimeError, count: int, request: Request) -> None:
    """Reraise an error of a batch of `count` images unless it is out of memory and the batch can be halved."""
    texts = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")  # of a GPU, a CPU, and cuBLAS
    if not isinstance(error, torch.OutOfMemoryError) and not any(text in str(error) for text in texts):
        raise error
    if count == 1:
        raise UserError("one image does not fit the memory: generate smaller images, or in bfloat16") from error
    if request.batch_size is not None:
        raise UserError(
            f"{count} images at a time do not fit the memory: give a smaller batch size, or leave it out"
        ) from error


def halved(batches: list[list[int]]) -> list[list[int]]:
    """Free the memory of a failed first batch, and split all batches to at most half its size."""
    gc.collect()  # frames of the failed batch may be in reference cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(batches[0]) // 2
    return [part for batch in batches for part in split(batch, half, lambda number: 0)]
