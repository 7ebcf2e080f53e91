"""Pseudo linear multi-step: Adams-Bashforth on the predicted noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.level import Grid, Level
from ldm.diffusion.prediction import make_prediction
from ldm.diffusion.samplers.first_order import coefficients
from ldm.diffusion.samplers.step import Noise, Step

WEIGHTS = (  # of the noises so far, newest first, by their number (Adams and Bashforth)
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@dataclass(frozen=True)
class PLMS:
    """A weighted sum of the noises of up to four steps (Liu et al. 2022, eq. 12); one call per step, two in the first.

    The first step evaluates its end once, like Heun's (diffusers' `skip_prk_steps`), unless it starts from a level
    without signal or is the last: then it is DDIM's. The weights are those of equal steps, as published, so that the
    order is 2 on most grids. The noise is summed, whatever the network regresses. diffusers' `PNDMScheduler` sums the
    outputs, as `mixed` "v" does for prediction v. That has order 1: DDIM's step rotates v together with x, and so does
    the sum, so that this part of v's change is counted twice.
    """

    mixed: Literal["eps", "v"] = "eps"

    def __call__(self, denoiser: Denoiser, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
        """Sample from `x` at the first level of the grid; `noise` is not called."""
        prediction = make_prediction(self.mixed)

        def seen(x: Tensor, x0: Tensor, level: Level) -> Tensor:
            return prediction.target(x0, level.noise_in(x, x0), level)

        past: tuple[Tensor, ...] = ()  # newest first
        for index, (level, following) in enumerate(grid.steps(), start=1):
            denoised = denoiser(x, level)
            past = (seen(x, denoised.x0, level), *past[:3])
            if level.alpha == 0:
                of_x, of_x0, _ = coefficients(level, following)
                x = of_x * x + of_x0 * denoised.x0
            else:
                mixed = sum(weight * found for weight, found in zip(WEIGHTS[len(past) - 1], past, strict=True))
                if index == 1 < len(grid):
                    ahead = _transfer(x, prediction.to_eps(x, past[0], level), level, following)
                    mixed = (past[0] + seen(ahead, denoiser(ahead, following).x0, following)) / 2
                x = _transfer(x, prediction.to_eps(x, mixed, level), level, following)
            yield Step(x, following, denoised)


def _transfer(x: Tensor, noise: Tensor, level: Level, following: Level) -> Tensor:
    """Take DDIM's step with a given noise (Liu et al. 2022, eq. 11)."""
    ratio = following.alpha / level.alpha
    return ratio * x + (following.sigma - ratio * level.sigma) * noise


plms = PLMS()
