"""Copy tensors to the device without waiting for it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from ldm import devices
from ldm.data.preparing import Batch
from ldm.diffusion.level import Level

T = TypeVar("T", Tensor, Level)


def moved(given: T, device: torch.device) -> T:
    """Copy a tensor, or the tensors of a level, to the device, through pinned memory if that is a GPU.

    From other memory the host would wait until the GPU's queue is empty.
    """
    if isinstance(given, Level):
        return Level(*(devices.moved(tensor, device) for tensor in (given.alpha, given.sigma, given.t)))
    return devices.moved(given, device)


def on_device(batches: Iterator[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """Yield batches with their images on the device.

    A GPU copies on a separate stream, while the previous step is still being computed.
    """
    if device.type != "cuda":
        yield from batches
        return
    copying = torch.cuda.Stream(device)
    for batch in batches:
        if batch.images is not None:
            with torch.cuda.stream(copying):
                images = moved(batch.images, device)
            computing = torch.cuda.current_stream(device)
            computing.wait_stream(copying)
            images.record_stream(computing)  # keeps their memory until the computation is done
            batch = replace(batch, images=images)
        yield batch
