"""Data with known ideal denoisers and probability flows."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from ldm.diffusion.denoiser import Denoised, Denoiser
from ldm.diffusion.level import Grid, Level

MEAN, DEVIATION = 0.7, 0.4  # of the Gaussian data
WEIGHTS, MEANS, DEVIATIONS = (0.5, 0.3, 0.2), (-1.0, 0.6, 1.4), (0.3, 0.2, 0.4)  # of the mixture


def gaussian(x: Tensor, level: Level) -> Denoised:
    """Return E[x0 | x] for data N(MEAN, DEVIATION^2)."""
    gain = level.alpha * DEVIATION**2 / (level.alpha**2 * DEVIATION**2 + level.sigma**2)
    x0 = MEAN + gain * (x - level.alpha * MEAN)
    return Denoised(x0, x0)


def mixture(x: Tensor, level: Level) -> Denoised:
    """Return E[x0 | x] for data from a mixture of three Gaussians in one dimension."""
    weights, means, deviations = (torch.tensor(v, dtype=x.dtype) for v in (WEIGHTS, MEANS, DEVIATIONS))
    variance = level.alpha**2 * deviations**2 + level.sigma**2  # of each part at this level, (3,)
    distance = x[..., None] - level.alpha * means  # (..., 3)
    share = (weights.log() - variance.log() / 2 - distance**2 / variance / 2).softmax(-1)
    x0 = (share * (means + level.alpha * deviations**2 / variance * distance)).sum(-1)
    return Denoised(x0, x0)


def gaussian_end(x: Tensor, level: Level, final: Level) -> Tensor:
    """Map x along the probability flow, which keeps its distance to the mean in standard deviations."""
    spread = [(at.alpha**2 * DEVIATION**2 + at.sigma**2).sqrt() for at in (level, final)]
    return final.alpha * MEAN + spread[1] / spread[0] * (x - level.alpha * MEAN)


def at_ratio(ratio: float) -> Level:
    """Return the variance-preserving level with this sigma / alpha."""
    angle = torch.tensor(ratio, dtype=torch.float64).atan()
    return Level(angle.cos(), angle.sin(), torch.tensor(ratio))


def runge_kutta_end(denoiser: Denoiser, x: Tensor, level: Level, final: Level) -> Tensor:
    """Map x (N,) along the probability flow, to a relative error of 1e-12.

    d(x / alpha) / d log(sigma / alpha) = x / alpha - x0 (Karras et al. 2022, eq. 1 and 3).
    """

    def slope(log_ratio: float, y: np.ndarray) -> np.ndarray:
        here = at_ratio(math.exp(log_ratio))
        return y - denoiser(here.alpha * torch.from_numpy(y), here).x0.numpy()

    ends = [(at.sigma / at.alpha).log().item() for at in (level, final)]
    solved = solve_ivp(slope, ends, (x / level.alpha).numpy(), "DOP853", rtol=1e-13, atol=1e-13)
    return final.alpha * torch.from_numpy(solved.y[:, -1])


def smooth_grid(
    steps: int, spacing: Callable[[Tensor], Tensor] = torch.exp, ends: tuple[float, float] = (1.6, -1.6)
) -> Grid:
    """Return levels evenly spaced between `ends` after the transformation `spacing` to sigma / alpha."""
    places = torch.linspace(*ends, steps + 1, dtype=torch.float64)
    return Grid(tuple(at_ratio(ratio) for ratio in spacing(places).tolist()))


def order(steps: tuple[int, ...], errors: list[float]) -> float:
    """Return the slope of log error over log step."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])
