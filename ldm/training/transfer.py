"""To the device without waiting for it: the host goes on to queue work while the device does what it was told."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from ldm.data.preparing import Batch
from ldm.diffusion.level import Level

T = TypeVar("T", Tensor, Level)


def moved(given: T, device: torch.device) -> T:
    """A tensor of the host, or a level of such, on the device.

    A GPU fetches it from pinned memory when its queue comes to it. Out of other memory the host would wait until the
    queue is empty.
    """
    if isinstance(given, Level):
        return Level(*(moved(tensor, device) for tensor in (given.alpha, given.sigma, given.t)))
    if device.type != "cuda" or given.device.type != "cpu":
        return given.to(device)
    return given.pin_memory().to(device, non_blocking=True)


def on_device(batches: Iterator[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """The batches, their images on the device.

    A GPU copies them beside its computing, on a stream of its own: the loop asks for the images of a step while the
    step before is still being computed.
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
            images.record_stream(computing)  # else their memory would be free for the next copy too early
            batch = replace(batch, images=images)
        yield batch
