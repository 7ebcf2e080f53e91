"""A level: one point of the path from image to noise; and the grid of levels that a sampler visits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Level:
    """A point of the path x_t = alpha * x0 + sigma * noise, and the time `t` of the network there.

    The three tensors have one shape: () for one level, (B,) for one level per sample.
    """

    alpha: Tensor
    sigma: Tensor
    t: Tensor

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio alpha^2 / sigma^2, infinite where there is no noise."""
        return (self.alpha / self.sigma).square()

    @property
    def log_snr(self) -> Tensor:
        """Logarithm of the SNR, minus infinity where there is no signal."""
        return 2 * (self.alpha / self.sigma).log()

    def like(self, x: Tensor) -> Level:
        """Reshape the level to broadcast with `x` (B, ...).

        A single level stays a float64 scalar, which PyTorch multiplies with a tensor on any device without changing its
        dtype. One level per sample becomes (B, 1, ...) in the dtype of `x`.
        """
        if self.alpha.ndim == 0:
            return self
        return Level(per_sample(self.alpha, x), per_sample(self.sigma, x), per_sample(self.t, x, self.t.dtype))

    def noisy(self, x0: Tensor, noise: Tensor) -> Tensor:
        """Return a sample of q(x_t | x_0) for standard normal `noise` (Ho et al. 2020, eq. 4)."""
        level = self.like(x0)
        return level.alpha * x0 + level.sigma * noise

    def noise_in(self, x: Tensor, x0: Tensor) -> Tensor:
        """Return the noise that leads from `x0` to `x`, both (B, ...), at a level with noise."""
        level = self.like(x)
        return (x - level.alpha * x0) / level.sigma


def clean_level() -> Level:
    """Return the level of the image itself, in float64; no network is called there, so its t is unused."""
    one = torch.ones((), dtype=torch.float64)
    return Level(one, one - 1, torch.tensor(-1))


def per_sample(value: Tensor, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Reshape values (B,) to broadcast with `x` (B, ...), in its dtype by default; leave a single value () as it is."""
    if value.ndim == 0:
        return value
    return value.to(x.device, dtype or x.dtype).view(-1, *(1,) * (x.ndim - 1))


@dataclass(frozen=True)
class Grid:
    """The levels that a sampler visits, noisiest first; at the last, the level of the result, no network is called.

    Sampling starts from standard normal noise times `initial_scale`.
    """

    levels: tuple[Level, ...]
    initial_scale: float = 1.0
    by_ratio: Callable[[Tensor], Level] | None = None  # the schedule's level with a given sigma / alpha, ()

    def __len__(self) -> int:
        """Return number of steps, one less than levels."""
        return len(self.levels) - 1

    def last(self, steps: int) -> Grid:
        """Return the last `steps` steps."""
        return replace(self, levels=self.levels[len(self) - steps :])

    def at_ratio(self, ratio: Tensor) -> Level:
        """Return the schedule's level with a given sigma / alpha, (), between the grid's levels."""
        assert self.by_ratio is not None, "this grid was made without a schedule"
        return self.by_ratio(ratio)

    @property
    def t(self) -> Tensor:
        """The times of the network at each step, (steps,)."""
        return torch.stack([level.t for level in self.levels[:-1]])

    def steps(self) -> Iterator[tuple[Level, Level]]:
        """Iterate over pairs (level, next level)."""
        return itertools.pairwise(self.levels)
