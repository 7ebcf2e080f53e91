"""Heun's method on the probability flow."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.level import Grid
from ldm.diffusion.samplers.first_order import coefficients
from ldm.diffusion.samplers.step import Noise, Step


def heun(denoiser: Denoiser, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
    """Second order with two network calls per step (Karras et al. 2022, algorithm 1 without its churn).

    The second call is at the end of Euler's step, which is then repeated with the mean of both noises. The last step,
    and one from a level without signal (infinite sigma in k-diffusion), are Euler's: n steps cost 2 n - 1 calls, one
    fewer from zero signal if n > 1. `noise` is not called.
    """
    for index, (level, following) in enumerate(grid.steps(), start=1):
        denoised = denoiser(x, level)
        of_x, of_x0, _ = coefficients(level, following)
        ahead = of_x * x + of_x0 * denoised.x0  # Euler's step
        if index < len(grid) and level.alpha > 0:
            here = level.noise_in(x, denoised.x0)
            there = following.noise_in(ahead, denoiser(ahead, following).x0)
            of_noise = following.sigma - following.alpha / level.alpha * level.sigma
            ahead = ahead + of_noise / 2 * (there - here)
        x = ahead
        yield Step(x, following, denoised)
