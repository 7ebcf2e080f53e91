"""Peak rates of the machine: matrix products and 3x3 convolutions of a suitable size."""

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
REPEATS = 10  # the fastest counts
MATRIX = {"cpu": 2048, "cuda": 8192}  # rows and columns
IMAGES = {"cpu": 1, "cuda": 64}  # 64x64 feature maps of the convolution
CHANNELS = 320  # as at Stable Diffusion's finest level


@dataclass(frozen=True)
class Peaks:
    """Floating-point operations per second, by dtype."""

    matrix: dict[torch.dtype, float]
    convolution: dict[torch.dtype, float]

    def of(self, dtype: torch.dtype) -> float:
        """Return the higher rate, which bounds networks of matrix products and convolutions."""
        return max(self.matrix[dtype], self.convolution[dtype])


def describe(device: torch.device) -> str:
    """Describe the device in a few words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def types_of(device: torch.device) -> list[torch.dtype]:
    """Return the dtypes to measure on a device; without instructions for bfloat16 a CPU is too slow in it."""
    return [dtype for dtype in TYPES.values() if dtype == torch.float32 or computes_bfloat16(device)]


@torch.inference_mode()
def measure_peaks(device: torch.device, repeats: int = REPEATS) -> Peaks:
    """Measure both rates for each dtype of the device; this takes seconds on a CPU."""
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


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one run, until the device is idle."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def _best(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the seconds of the fastest run, after two warm-up runs."""
    return min([timed(run, device) for _ in range(2 + repeats)][2:])
