"""CUDA graphs: calls of a U-Net on a GPU, recorded once and replayed at each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.models.attention import KeysValues
from ldm.models.unet.unet import UNet

MOST = 4  # recordings that are kept: each holds its own memory
WARM_UP = 3  # calls before a recording, in which kernels are compiled and selected

Work = Callable[[], Tensor]
Shapes = tuple[tuple[torch.Size, torch.dtype], ...]


class Replay(NamedTuple):
    """A recording: a function that repeats the work on the same memory, and the memory of its result."""

    run: Callable[[], None]
    output: Tensor


def require_gpu(device: torch.device) -> None:
    """Raise UserError for a device without CUDA graphs."""
    if device.type != "cuda":
        raise UserError(
            f"compiling is for GPUs, not for {device}: leave it out, because networks are prepared for inference anyway"
        )


def record_on_gpu(work: Work) -> Replay:
    """Record work as a CUDA graph, which launches all its kernels at once."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = work()
    return Replay(graph.replay, output)


class CUDAGraphUNet:
    """`UNet.denoise` by recordings, one for each set of input shapes."""

    def __init__(self, unet: UNet, record: Callable[[Work], Replay] | None = None) -> None:
        """Take `record`, which makes a recording, by default a CUDA graph."""
        self.unet, self.record = unet, record or record_on_gpu
        self._recordings: dict[Shapes, _Recording] = {}

    def denoise(self, latents: Tensor, embedding: Tensor, projected: list[KeysValues]) -> Tensor:
        """See `UNet.denoise`."""
        given = [latents, embedding, *_tensors(projected)]
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in given)
        recording = self._recordings.pop(shapes, None)
        if recording is None:
            while len(self._recordings) >= MOST:
                del self._recordings[next(iter(self._recordings))]  # the least recently used one
            recording = _Recording(self, latents, embedding, projected)
        self._recordings[shapes] = recording
        return recording.play(latents, embedding, projected)


class _Recording:
    """A recorded call and the memory of its inputs."""

    def __init__(self, of: CUDAGraphUNet, latents: Tensor, embedding: Tensor, projected: list[KeysValues]) -> None:
        self.latents, self.embedding = latents.clone(), embedding.clone()
        self.projected = [KeysValues(*(part if part is None else part.clone() for part in one)) for one in projected]
        self.source = projected  # what `self.projected` is a copy of
        self.replay = of.record(lambda: of.unet.denoise(self.latents, self.embedding, self.projected))

    def play(self, latents: Tensor, embedding: Tensor, projected: list[KeysValues]) -> Tensor:
        self.latents.copy_(latents)
        self.embedding.copy_(embedding)
        if projected is not self.source:  # it is the same from step to step
            for own, given in zip(_tensors(self.projected), _tensors(projected), strict=True):
                own.copy_(given)
            self.source = projected
        self.replay.run()
        return self.replay.output.clone()


def _tensors(projected: list[KeysValues]) -> list[Tensor]:
    return [part for one in projected for part in one if part is not None]
