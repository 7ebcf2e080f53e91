"""Samplers: generators that walk a grid of levels with a denoiser and yield each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoised, Denoiser
from ldm.diffusion.level import Grid, Level
from ldm.errors import UserError


class Step(NamedTuple):
    """Where a step of a sampler has come to: `x` (B, ...) at `level`, and what the denoiser said on the way."""

    x: Tensor
    level: Level
    denoised: Denoised


Noise = Callable[[Tensor], Tensor]  # standard normal numbers in the shape, type and place of its argument
Sampler = Callable[[Denoiser, Tensor, Grid, Noise], Iterator[Step]]  # from x (B, ...) at the grid's first level


@dataclass(frozen=True)
class FirstOrder:
    """One network call a step: DDIM at `eta` 0, DDPM with the small variance at 1 (Song et al. 2021, eq. 12 and 16).

    With variance "large", the noise of a step is that of q(x_t | x_s) (Ho et al. 2020, section 3.2) around the same
    mean, except in the last step, which adds none. With the small one at eta 1, a denoiser that has learned the
    variance has its own.
    """

    eta: float = 0.0
    variance: Literal["small", "large"] = "small"

    def __call__(self, denoiser: Denoiser, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
        """Walk the grid from `x` at its first level; `noise` is asked once for each step that adds some."""
        for index, (level, following) in enumerate(grid.steps(), start=1):
            denoised = denoiser(x, level)
            of_x, of_x0, of_noise = self._coefficients(level, following, last=index == len(grid))
            x = of_x * x + of_x0 * denoised.x0
            if of_noise > 0:
                if denoised.log_variance is not None and self.eta == 1 and self.variance == "small":
                    of_noise = (denoised.log_variance / 2).exp()
                x = x + of_noise * noise(x)
            yield Step(x, following, denoised)

    def _coefficients(self, level: Level, following: Level, last: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Factors of x, x0 and fresh noise in the next x, float64 scalars.

        Written with x and x0 alone, not the noise (x - alpha x0) / sigma between them: nothing is ever divided by
        alpha, so that a first level without signal is exact, and little cancels at the last.
        """
        transition = level.sigma**2 - (level.alpha / following.alpha * following.sigma) ** 2  # of q(x_t | x_s)
        small = transition.clamp(min=0).sqrt() * following.sigma / level.sigma  # of q(x_s | x_t, x_0)
        fresh = self.eta * small
        kept = (following.sigma**2 - fresh**2).clamp(min=0).sqrt() / level.sigma
        if self.variance == "large":
            fresh = torch.zeros_like(fresh) if last else transition.clamp(min=0).sqrt()
        return kept, following.alpha - kept * level.alpha, fresh


def make_sampler(name: str, eta: float | None = None) -> FirstOrder:
    """The sampler "ddim" (`eta` 0 if not given) or "ddpm" (1); raises UserError for others and for other etas."""
    if name not in ("ddim", "ddpm"):
        raise UserError(f"no sampler {name!r}: there are ddim and ddpm")
    if name == "ddpm" and eta not in (None, 1):
        raise UserError(f"sampler ddpm has eta 1, not {eta:g}: for other values use sampler ddim")
    if eta is not None and not 0 <= eta <= 1:
        raise UserError(f"eta {eta:g} is not between 0 (no fresh noise) and 1 (that of DDPM)")
    return FirstOrder(float(name == "ddpm") if eta is None else eta)
