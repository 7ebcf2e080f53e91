"""The contract of samplers: a generator that visits a grid of levels with a denoiser and yields each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from ldm.diffusion.denoiser import Denoised, Denoiser
from ldm.diffusion.level import Grid, Level


class Step(NamedTuple):
    """The result of a step: `x` (B, ...) at `level`, and the denoiser's first answer in the step."""

    x: Tensor
    level: Level
    denoised: Denoised


Noise = Callable[[Tensor], Tensor]  # standard normal noise in the shape, dtype and device of its argument
Sampler = Callable[[Denoiser, Tensor, Grid, Noise], Iterator[Step]]  # from x (B, ...) at the first level
