"""What the machine can do at best: products of matrices and 3x3 convolutions of a good size."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from ldm.devices import computes_bfloat16

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
REPEATS = 10  # of which the best counts: a peak is what the machine can do undisturbed
MATRIX = {"cpu": 2048, "cuda": 8192}  # rows and columns
IMAGES = {"cpu": 1, "cuda": 64}  # of the convolution, each 64x64
CHANNELS = 320  # those of Stable Diffusion's finest level


@dataclass(frozen=True)
class Peaks:
    """Floating-point operations a second, by precision."""

    matrix: dict[torch.dtype, float]
    convolution: dict[torch.dtype, float]

    def of(self, dtype: torch.dtype) -> float:
        """The better of the two, which no network of both can pass."""
        return max(self.matrix[dtype], self.convolution[dtype])


def synchroniser(device: torch.device) -> Callable[[], None]:
    """What waits until a device has done what it was told."""
    return torch.cuda.synchronize if device.type == "cuda" else _no_wait


def _no_wait() -> None:
    """A CPU has done what it was told when the call returns."""


def describe(device: torch.device) -> str:
    """The device in a few words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def types_of(device: torch.device) -> list[torch.dtype]:
    """The types worth measuring on a device: without instructions for bfloat16 a CPU crawls in it."""
    return [dtype for dtype in TYPES.values() if dtype == torch.float32 or computes_bfloat16(device)]


@torch.inference_mode()
def measure_peaks(device: torch.device, repeats: int = REPEATS) -> Peaks:
    """Both rates in the precisions that the device computes in; some seconds on a CPU."""
    return Peaks(
        {dtype: _matrix(device, dtype, repeats) for dtype in types_of(device)},
        {dtype: _convolution(device, dtype, repeats) for dtype in types_of(device)},
    )


def _matrix(device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    size = MATRIX[device.type]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _best(lambda: left @ right, device, repeats)


def _convolution(device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    images = IMAGES[device.type]
    maps = torch.randn(images, CHANNELS, 64, 64, device=device).to(dtype)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3, device=device).to(dtype)
    maps, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (maps, weight))
    flops = 2 * images * 64**2 * CHANNELS**2 * 9
    return flops / _best(lambda: F.conv2d(maps, weight, padding=1), device, repeats)


def _best(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds of the fastest of some runs, after two that warm up."""
    wait, times = synchroniser(device), []
    for _ in range(2 + repeats):
        wait()
        began = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - began)
    return min(times[2:])
