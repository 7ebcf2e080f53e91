"""Linear multistep methods on the predicted noise: LMS and DEIS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.level import Grid, Level
from ldm.diffusion.samplers.dpm_solver import FEW_STEPS
from ldm.diffusion.samplers.first_order import coefficients
from ldm.diffusion.samplers.step import Noise, Step

NODES, WEIGHTS = (torch.from_numpy(array) for array in np.polynomial.legendre.leggauss(24))


class Slope(NamedTuple):
    """A predicted noise, the derivative of x / alpha with respect to sigma / alpha, and its level."""

    level: Level
    noise: Tensor


@dataclass(frozen=True)
class LinearMultistep:
    """Integrate a polynomial through the last `order` predicted noises; one network call per step.

    The polynomial is one of sigma / alpha (LMS of k-diffusion) or of its logarithm (log-rho DEIS, Zhang and Chen 2023,
    eq. 15). Early steps, and with `lower_order_final` the last of few steps, have a lower order. In the logarithm a
    step to the image itself, which is infinitely long, is DDIM's, as is every step from a level without signal.
    """

    order: int
    variable: Literal["ratio", "log"]
    lower_order_final: bool = False

    def __call__(self, denoiser: Denoiser, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
        """Sample from `x` at the first level of the grid; `noise` is not called."""
        past: list[Slope] = []  # newest first
        for index, (level, following) in enumerate(grid.steps(), start=1):
            denoised = denoiser(x, level)
            if level.alpha == 0:
                of_x, of_x0, _ = coefficients(level, following)
                x = of_x * x + of_x0 * denoised.x0
                yield Step(x, following, denoised)
                continue
            past = [Slope(level, level.noise_in(x, denoised.x0)), *past[: self.order - 1]]
            used = past[: self._order_at(len(grid) - index, grid, following)]
            weights = self._weights([slope.level for slope in used], following)
            moved = sum(weight * slope.noise for weight, slope in zip(weights, used, strict=True))
            x = following.alpha * (x / level.alpha + moved)
            yield Step(x, following, denoised)

    def _order_at(self, remaining: int, grid: Grid, following: Level) -> int:
        """Return the largest order of a step with `remaining` steps after it."""
        if self.variable == "log" and following.sigma == 0:
            return 1
        few = self.lower_order_final and len(grid) < FEW_STEPS
        return min(self.order, remaining + 1) if few else self.order

    def _weights(self, levels: Sequence[Level], following: Level) -> list[Tensor]:
        """Return the integral of each Lagrange polynomial over sigma / alpha, from the newest level to `following`."""
        logarithm = self.variable == "log"
        points = torch.stack([each.sigma / each.alpha for each in (*levels, following)])
        if len(levels) == 1:
            return [points[1] - points[0]]
        points = points.log() if logarithm else points
        *seen, end = points
        half = (end - seen[0]) / 2
        at = seen[0] + half * (NODES + 1)
        measure = half * WEIGHTS * (at.exp() if logarithm else 1)  # d ratio = ratio d log ratio
        weights = []
        for this in seen:
            others = [(at - other) / (this - other) for other in seen if other is not this]
            weights.append((torch.stack([measure, *others]).prod(0)).sum())
        return weights


lms = LinearMultistep(4, "ratio")
deis = LinearMultistep(2, "log", lower_order_final=True)
