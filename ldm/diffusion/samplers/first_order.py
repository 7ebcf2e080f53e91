"""First-order samplers: DDIM, DDPM with either variance, Euler and Euler-ancestral are one formula."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.level import Grid, Level
from ldm.diffusion.samplers.step import Noise, Step


@dataclass(frozen=True)
class FirstOrder:
    """DDIM at `eta` 0, DDPM with the small variance at 1 (Song et al. 2021, eq. 12 and 16); one call per step.

    In k-diffusion's variables x / alpha and sigma / alpha these are Euler's method on the probability flow (Karras et
    al. 2022, algorithm 1 without its churn) and Euler-ancestral. With variance "large", a step adds noise with the
    variance of q(x_t | x_s) (Ho et al. 2020, section 3.2; sigma-hat of Song et al. 2021) to the same mean, except in
    the last step, which adds no noise. At eta 1, a variance that the denoiser predicts replaces the small variance,
    except in DDIM. DDIM keeps the noise of the unclipped image where the denoiser clips its images, as in diffusers;
    DDPM follows the posterior of the clipped one (Ho et al. 2020, eq. 7).
    """

    eta: float = 0.0
    variance: Literal["small", "large"] = "small"
    any_eta: bool = field(default=False, compare=False)  # whether a request may choose another eta

    def __call__(self, denoiser: Denoiser, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
        """Sample from `x` at the first level of the grid; `noise` is called once in each step that adds noise."""
        for index, (level, following) in enumerate(grid.steps(), start=1):
            denoised = denoiser(x, level)
            of_x, of_x0, of_noise = coefficients(level, following, self.eta)
            if self.variance == "large":
                transition = _transition(level, following).sqrt()
                of_noise = torch.zeros_like(of_noise) if index == len(grid) else transition
            moved = of_x * x + of_x0 * denoised.x0
            if self.any_eta and denoised.unclipped is not None:
                moved = moved + of_x * level.alpha * (denoised.x0 - denoised.unclipped)
            x = moved
            if of_noise > 0:
                if denoised.log_variance is not None and self._takes_variance:
                    of_noise = (denoised.log_variance / 2).exp()
                x = x + of_noise * noise(x)
            yield Step(x, following, denoised)

    @property
    def _takes_variance(self) -> bool:
        return self.eta == 1 and self.variance == "small" and not self.any_eta


def coefficients(level: Level, following: Level, eta: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return the factors of x, x0 and fresh noise in the next x, float64 scalars.

    In terms of x and x0 instead of the noise (x - alpha x0) / sigma nothing is divided by alpha of `level`: a first
    level without signal is exact, and there is little cancellation at the last.
    """
    small = _transition(level, following).sqrt() * following.sigma / level.sigma  # of q(x_s | x_t, x_0)
    fresh = eta * small
    kept = (following.sigma**2 - fresh**2).clamp(min=0).sqrt() / level.sigma
    return kept, following.alpha - kept * level.alpha, fresh


def _transition(level: Level, following: Level) -> Tensor:
    """Return the variance of q(x_t | x_s), from `following` (s) to `level` (t)."""
    return (level.sigma**2 - (level.alpha / following.alpha * following.sigma) ** 2).clamp(min=0)


ddim = FirstOrder(any_eta=True)
ddpm = FirstOrder(1.0)
ddpm_large = FirstOrder(1.0, "large")
euler = FirstOrder()
