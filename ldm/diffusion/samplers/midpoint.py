"""Samplers that call the network a second time at the middle of a step in log sigma / alpha."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.level import Grid, Level
from ldm.diffusion.samplers.first_order import coefficients
from ldm.diffusion.samplers.step import Noise, Step


def _ratio(level: Level) -> Tensor:
    """Return sigma / alpha, the sigma of k-diffusion."""
    return level.sigma / level.alpha


def _ancestral(level: Level, following: Level) -> tuple[Tensor, Tensor]:
    """Return sigma_down and sigma_up of k-diffusion: where an ODE step ends, and the noise added after it."""
    here, there = _ratio(level), _ratio(following)
    up = (there**2 * (here**2 - there**2) / here**2).sqrt().clamp(max=there)
    return (there**2 - up**2).sqrt(), up


@dataclass(frozen=True)
class KDPM2:
    """DPM-Solver-2 (Lu et al. 2022a, algorithm 1) in k-diffusion's variables; two network calls per step.

    The noise predicted at the middle of a step, to which Euler's method leads, is used for the whole step. With
    `ancestral` the step ends at a lower level, and noise leads up from there. Steps that end at the image itself or
    start from a level without signal are Euler's, with one call.
    """

    ancestral: bool = False

    def __call__(self, denoiser: Denoiser, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
        """Sample from `x` at the first level; `noise` is called in each step with two calls, if ancestral."""
        for level, following in grid.steps():
            denoised = denoiser(x, level)
            if following.sigma == 0 or level.alpha == 0:
                of_x, of_x0, _ = coefficients(level, following)
                x = of_x * x + of_x0 * denoised.x0
            else:
                here, there = _ratio(level), _ratio(following)
                down, up = _ancestral(level, following) if self.ancestral else (there, 0 * there)
                middle = grid.at_ratio((here * down).sqrt())
                scaled = x / level.alpha
                ahead = middle.alpha * (scaled + (_ratio(middle) - here) * level.noise_in(x, denoised.x0))
                slope = middle.noise_in(ahead, denoiser(ahead, middle).x0)
                scaled = scaled + (down - here) * slope
                x = following.alpha * (scaled + up * noise(x) if self.ancestral else scaled)
            yield Step(x, following, denoised)


def dpmpp_sde(denoiser: Denoiser, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
    """DPM-Solver++ (SDE) of k-diffusion with its middle at half of a step; two network calls per step.

    Both parts of a step are Euler-ancestral steps from its start; the second one takes the image predicted at the
    middle. Their noise belongs to one Brownian path over sigma / alpha, so `noise` is called twice in such a step.
    Steps that end at the image itself, have no length or start from a level without signal are Euler's.
    """
    for level, following in grid.steps():
        denoised = denoiser(x, level)
        if following.sigma == 0 or level.alpha == 0 or _ratio(following) >= _ratio(level):
            of_x, of_x0, _ = coefficients(level, following)
            x = of_x * x + of_x0 * denoised.x0
        else:
            middle = grid.at_ratio((_ratio(level) * _ratio(following)).sqrt())
            first = noise(x)
            share = (_ratio(level) - _ratio(middle)) / (_ratio(level) - _ratio(following))  # of the path's variance
            whole = share.sqrt() * first + (1 - share).sqrt() * noise(x)
            of_x, of_x0, of_noise = coefficients(level, middle, eta=1.0)
            ahead = of_x * x + of_x0 * denoised.x0 + of_noise * first
            of_x, of_x0, of_noise = coefficients(level, following, eta=1.0)
            x = of_x * x + of_x0 * denoiser(ahead, middle).x0 + of_noise * whole
        yield Step(x, following, denoised)


kdpm2 = KDPM2()
kdpm2_ancestral = KDPM2(ancestral=True)
