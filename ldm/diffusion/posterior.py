"""The posterior q(x_s | x_t, x_0) of the diffusion process, and the possible variances of a denoising step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.level import Grid, Level, per_sample


@dataclass(frozen=True)
class Posterior:
    """q(x_s | x_t, x_0) = N(of_x * x_t + of_x0 * x_0, exp(small)) (Ho et al. 2020, eq. 6 and 7).

    The tensors have the shape of the level of x_t, () or (B,). `small` and `large` are logarithms of the lower and the
    upper bound of the variance of a denoising step: that of this posterior, exact for known data, and that of
    q(x_t | x_s), exact for standard normal data (Ho et al. 2020, section 3.2). `last` is true where x_s is the image
    itself: the posterior has no variance there, and `small` is the previous step's.
    """

    of_x: Tensor
    of_x0: Tensor
    small: Tensor
    large: Tensor
    last: Tensor

    def mean(self, x: Tensor, x0: Tensor) -> Tensor:
        """Return the mean given x_t and the image, both (B, ...)."""
        return per_sample(self.of_x, x) * x + per_sample(self.of_x0, x) * x0

    def learned(self, output: Tensor) -> Tensor:
        """Convert the network's output (B, ...) for the variance to a log variance: `small` at -1, `large` at 1.

        Values beyond -1 and 1 extrapolate (Nichol and Dhariwal 2021, eq. 15, in the scale of their released code).
        """
        share = (output + 1) / 2
        return share * per_sample(self.large, output) + (1 - share) * per_sample(self.small, output)


class Posteriors:
    """The posterior of every step of a grid, computed in float64.

    In a grid that skips training timesteps, steps have the betas of Nichol and Dhariwal 2021, eq. 19.
    """

    def __init__(self, grid: Grid) -> None:
        alpha, sigma = (torch.stack([getattr(level, name) for level in grid.levels]) for name in ("alpha", "sigma"))
        noise = sigma[:-1] ** 2 - (alpha[:-1] / alpha[1:] * sigma[1:]) ** 2  # variance of q(x_t | x_s), (steps,)
        kept = (sigma[1:] / sigma[:-1]) ** 2
        small = noise * kept
        if small[-1] == 0:
            small[-1] = small[-2] if len(grid) > 1 else noise[-1]
        columns = (alpha[:-1] / alpha[1:] * kept, alpha[1:] * noise / sigma[:-1] ** 2, small.log(), noise.log())
        self._columns = [column.flip(0) for column in (*columns, sigma[1:] == 0)]
        self._t = grid.t.flip(0)  # increasing, for searchsorted
        self._tables: dict[torch.device, tuple[Tensor, list[Tensor]]] = {}

    def at(self, level: Level) -> Posterior:
        """Return the posteriors of the steps that start at `level` (() or (B,)), found in the grid by its t."""
        t, columns = self._on(level.t.device)
        index = torch.searchsorted(t, level.t.contiguous())
        return Posterior(*(column[index] for column in columns))

    def _on(self, device: torch.device) -> tuple[Tensor, list[Tensor]]:
        """Return the table on a device; it is moved only once, since each copy synchronises host and GPU."""
        if device not in self._tables:
            self._tables[device] = self._t.to(device), [column.to(device) for column in self._columns]
        return self._tables[device]
