"""What every sampler is: a generator that walks a grid of levels with a denoiser and yields each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from ldm.diffusion.denoiser import Denoised, Denoiser
from ldm.diffusion.level import Grid, Level


class Step(NamedTuple):
    """Where a step of a sampler has come to: `x` (B, ...) at `level`, and what the denoiser said on the way."""

    x: Tensor
    level: Level
    denoised: Denoised


Noise = Callable[[Tensor], Tensor]  # standard normal numbers in the shape, type and place of its argument
Sampler = Callable[[Denoiser, Tensor, Grid, Noise], Iterator[Step]]  # from x (B, ...) at the grid's first level
