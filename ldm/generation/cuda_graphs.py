"""Calls of a U-Net on a GPU, recorded once as CUDA graphs and replayed at each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.models.attention import KeysValues
from ldm.models.unet.unet import UNet

MOST = 4  # recordings that are kept: each has memory of its own
WARM_UP = 3  # calls before a recording, in which kernels are compiled and chosen

Work = Callable[[], Tensor]
Shapes = tuple[tuple[torch.Size, torch.dtype], ...]


class Replay(NamedTuple):
    """What does some work again, on the same memory, and where its result then lies."""

    run: Callable[[], None]
    output: Tensor


def require_gpu(device: torch.device) -> None:
    """Raise UserError elsewhere than on a GPU, where a graph would hold nothing of what is computed."""
    if device.type != "cuda":
        raise UserError(f"compiling is for GPUs: on {device} networks prepared for sampling take its place")


def record_on_gpu(work: Work) -> Replay:
    """Work as a CUDA graph: a launch for all of its kernels."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = work()
    return Replay(graph.replay, output)


class CUDAGraphUNet:
    """`UNet.denoise` by recordings, one for each set of shapes that it is given."""

    def __init__(self, unet: UNet, record: Callable[[Work], Replay] | None = None) -> None:
        """`record` makes the recordings, by default as CUDA graphs."""
        self.unet, self.record = unet, record or record_on_gpu
        self._recordings: dict[Shapes, _Recording] = {}

    def denoise(self, latents: Tensor, embedding: Tensor, projected: list[KeysValues]) -> Tensor:
        """As `UNet.denoise`."""
        given = [latents, embedding, *_tensors(projected)]
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in given)
        recording = self._recordings.pop(shapes, None)
        if recording is None:
            while len(self._recordings) >= MOST:
                del self._recordings[next(iter(self._recordings))]  # the one that was not used for longest
            recording = _Recording(self, latents, embedding, projected)
        self._recordings[shapes] = recording
        return recording.played(latents, embedding, projected)


class _Recording:
    """A recorded call, and the memory that it reads."""

    def __init__(self, of: CUDAGraphUNet, latents: Tensor, embedding: Tensor, projected: list[KeysValues]) -> None:
        self.latents, self.embedding = latents.clone(), embedding.clone()
        self.projected = [KeysValues(*(part if part is None else part.clone() for part in one)) for one in projected]
        self.told = projected
        self.replay = of.record(lambda: of.unet.denoise(self.latents, self.embedding, self.projected))

    def played(self, latents: Tensor, embedding: Tensor, projected: list[KeysValues]) -> Tensor:
        self.latents.copy_(latents)
        self.embedding.copy_(embedding)
        if projected is not self.told:  # which stay the same from step to step
            for mine, theirs in zip(_tensors(self.projected), _tensors(projected), strict=True):
                mine.copy_(theirs)
            self.told = projected
        self.replay.run()
        return self.replay.output.clone()


def _tensors(projected: list[KeysValues]) -> list[Tensor]:
    return [part for one in projected for part in one if part is not None]
