"""Pseudo linear multi-step: Adams-Bashforth on the predicted noise."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.level import Grid, Level
from ldm.diffusion.samplers.first_order import coefficients
from ldm.diffusion.samplers.step import Noise, Step

WEIGHTS = (  # of the noises found so far, newest first, by how many there are (Adams and Bashforth)
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


class PLMS:
    """The noises of up to four steps mixed into one (Liu et al. 2022, eq. 12); one call a step, two in the first.

    The first step looks ahead once as Heun's does (diffusers' `skip_prk_steps`), unless it starts from a level without
    signal or is the last: then it is DDIM's. The weights are those of equal steps, as published, so that the order is
    2 on most grids. What is mixed is the noise whatever the network regresses; diffusers mixes its raw outputs, which
    is another method with prediction v.
    """

    def __call__(self, denoiser: Denoiser, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
        """Walk the grid from `x` at its first level; `noise` is never asked."""
        past: tuple[Tensor, ...] = ()  # noises, newest first
        for index, (level, following) in enumerate(grid.steps(), start=1):
            denoised = denoiser(x, level)
            past = (level.noise_in(x, denoised.x0), *past[:3])
            if level.alpha == 0:
                of_x, of_x0, _ = coefficients(level, following)
                x = of_x * x + of_x0 * denoised.x0
            else:
                mixed = sum(weight * found for weight, found in zip(WEIGHTS[len(past) - 1], past, strict=True))
                if index == 1 < len(grid):
                    ahead = _transfer(x, past[0], level, following)
                    mixed = (past[0] + following.noise_in(ahead, denoiser(ahead, following).x0)) / 2
                x = _transfer(x, mixed, level, following)
            yield Step(x, following, denoised)


def _transfer(x: Tensor, noise: Tensor, level: Level, following: Level) -> Tensor:
    """DDIM's step along a given noise (Liu et al. 2022, eq. 11)."""
    ratio = following.alpha / level.alpha
    return ratio * x + (following.sigma - ratio * level.sigma) * noise
