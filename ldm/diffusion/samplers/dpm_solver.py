"""DPM-Solver++(2M), its stochastic variant, and DPM-Solver++(2S)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.level import Grid, Level
from ldm.diffusion.samplers.first_order import coefficients
from ldm.diffusion.samplers.step import Noise, Step

FEW_STEPS = 15  # with fewer, a last step of second order is worse (Lu et al. 2022b, released code)


class Seen(NamedTuple):
    """A predicted image and its level."""

    level: Level
    x0: Tensor


@dataclass(frozen=True)
class DPMSolver2M:
    """DPM-Solver++(2M), or with `stochastic` SDE-DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2); one call per step.

    A step is that of DDIM, or of DDPM if `stochastic`, with the image extrapolated to the middle of the step in
    log alpha / sigma. The first step, a last step that ends without noise (infinitely long) and, with
    `lower_order_final`, the last of fewer than 15 steps are of first order.
    """

    stochastic: bool = False
    lower_order_final: bool = True

    def __call__(self, denoiser: Denoiser, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
        """Sample from `x` at the first level of the grid; `noise` is called once in each step that adds noise."""
        earlier: Seen | None = None
        for index, (level, following) in enumerate(grid.steps(), start=1):
            denoised = denoiser(x, level)
            seen = Seen(level, denoised.x0)
            of_x, of_x0, of_noise = coefficients(level, following, eta=float(self.stochastic))
            if earlier is None or (index == len(grid) and self._ends_plainly(grid)):
                image = seen.x0
            else:
                image = extrapolated(earlier, seen, following)
            x = of_x * x + of_x0 * image
            if of_noise > 0:
                x = x + of_noise * noise(x)
            earlier = seen
            yield Step(x, following, denoised)

    def _ends_plainly(self, grid: Grid) -> bool:
        return bool(grid.levels[-1].sigma == 0) or (self.lower_order_final and len(grid) < FEW_STEPS)


def dpmpp_2s(denoiser: Denoiser, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
    """Sample by DPM-Solver++(2S) (Lu et al. 2022b, algorithm 1) on the levels of the grid; `noise` is not called.

    Steps of first and second order alternate; one of second order repeats the step before it with the image
    extrapolated through both predictions. A step to the image itself, which is infinitely long, is of first order.
    """
    seen: list[tuple[Seen, Tensor]] = []  # predictions of this pair of steps, and the x that they were made from
    for level, following in grid.steps():
        denoised = denoiser(x, level)
        newest = Seen(level, denoised.x0)
        if not seen or seen[0][0].level.alpha == 0 or following.sigma == 0:
            seen, start, image = [(newest, x)], level, newest.x0
        else:
            (before, x), seen = seen[0], []
            start, length = before.level, following.log_snr - before.level.log_snr
            image = before.x0 + length / (level.log_snr - start.log_snr) / 2 * (newest.x0 - before.x0)
        of_x, of_x0, _ = coefficients(start, following)
        x = of_x * x + of_x0 * image
        yield Step(x, following, denoised)


def extrapolated(earlier: Seen, newest: Seen, following: Level) -> Tensor:
    """Extrapolate two images linearly in log alpha / sigma to the middle of the step to `following`.

    If the first level has no signal, its log alpha / sigma is infinite, and the result is the newest image.
    """
    start = newest.level.log_snr
    share = (following.log_snr - start) / (start - earlier.level.log_snr) / 2
    return newest.x0 + share * (newest.x0 - earlier.x0)


dpmpp_2m = DPMSolver2M()
dpmpp_2m_sde = DPMSolver2M(stochastic=True)
