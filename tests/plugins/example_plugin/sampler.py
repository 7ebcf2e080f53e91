"""A sampler: Euler's method that repeats its first step."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.level import Grid
from ldm.diffusion.samplers.first_order import coefficients
from ldm.diffusion.samplers.step import Noise, Step
from ldm.registry import SAMPLERS


@SAMPLERS.register("plain-euler")
def plain_euler(denoiser: Denoiser, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
    for level, following in grid.steps():
        denoised = denoiser(x, level)
        of_x, of_x0, _ = coefficients(level, following)
        x = of_x * x + of_x0 * denoised.x0
        yield Step(x, following, denoised)
