"""UniPC: a predictor and a corrector that shares its network call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.level import Grid
from ldm.diffusion.samplers.dpm_solver import Seen, extrapolated
from ldm.diffusion.samplers.first_order import coefficients
from ldm.diffusion.samplers.step import Noise, Step


@dataclass(frozen=True)
class UniPC:
    """UniPC of order 2 on images, with B(h) = exp(h) - 1 (Zhao et al. 2023, algorithm 1, bh2); one call per step.

    The predictor is DPM-Solver++(2M). The network call at the end of a step also corrects that step, which makes the
    order 3; the yielded x is not corrected yet. The end is never corrected, since the network is not called there. The
    last step is of first order, which limits the whole to order 2; without `lower_order_final` it is so only if it ends
    without noise (infinitely long).
    """

    lower_order_final: bool = True

    def __call__(self, denoiser: Denoiser, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
        """Sample from `x` at the first level of the grid; `noise` is not called."""
        start, past = x, list[Seen]()  # start of the last step, and predictions so far
        for index, (level, following) in enumerate(grid.steps(), start=1):
            denoised = denoiser(x, level)
            seen = Seen(level, denoised.x0)
            if past:
                x = _corrected(start, past, seen)
            of_x, of_x0, _ = coefficients(level, following)
            plain = index == len(grid) and (self.lower_order_final or following.sigma == 0)
            image = extrapolated(past[-1], seen, following) if past and not plain else seen.x0
            start, past = x, [*past[-1:], seen]
            x = of_x * x + of_x0 * image
            yield Step(x, following, denoised)


def _corrected(start: Tensor, past: list[Seen], seen: Seen) -> Tensor:
    """Repeat the step from `start` with the prediction at its end (UniC, Zhao et al. 2023, eq. 9).

    The image in between is a line through both ends, or a parabola through them and the previous one.
    """
    *before, begin = past
    of_x, of_x0, _ = coefficients(begin.level, seen.level)
    if not before:
        return of_x * start + of_x0 * (begin.x0 + seen.x0) / 2
    length = (seen.level.log_snr - begin.level.log_snr) / 2  # h
    place = (before[0].level.log_snr - begin.level.log_snr) / 2 / length  # r_1, of the previous one
    grown = (-length).expm1()  # B(h)
    first = -1 / length - 1 / grown
    second = -2 * first / length - 1 / grown
    of_before = (first - second) / (1 - place)  # the solution of eq. 9 for two unknowns
    of_end = first - of_before
    slope = (before[0].x0 - begin.x0) / place
    return of_x * start + of_x0 * (begin.x0 + of_before * slope + of_end * (seen.x0 - begin.x0))


unipc = UniPC()
