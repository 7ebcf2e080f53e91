"""One step backwards: q(x_s | x_t, x_0) of the diffusion process, and the variances that a model's step can have."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.level import Grid, Level, per_sample


@dataclass(frozen=True)
class Posterior:
    """q(x_s | x_t, x_0) = N(of_x * x_t + of_x0 * x_0, exp(small)) (Ho et al. 2020, eq. 6 and 7).

    The tensors have the shape of the level of x_t, () or (B,). `small` and `large` are the logarithms of the least
    and the greatest variance that a step of the model can need: that of this posterior, right for data that is known,
    and that of q(x_t | x_s), right for standard normal data (Ho et al. 2020, section 3.2). `last` says whether x_s is
    the image itself: there the posterior has no variance, and `small` is that of the step before.
    """

    of_x: Tensor
    of_x0: Tensor
    small: Tensor
    large: Tensor
    last: Tensor

    def mean(self, x: Tensor, x0: Tensor) -> Tensor:
        """The mean given x_t and the image, both (B, ...)."""
        return per_sample(self.of_x, x) * x + per_sample(self.of_x0, x) * x0

    def learned(self, output: Tensor) -> Tensor:
        """The log variance that a network's `output` (B, ...) stands for, -1 for `small` and 1 for `large`.

        It is not confined to the two (Nichol and Dhariwal 2021, eq. 15; the scale is that of their released code).
        """
        share = (output + 1) / 2
        return share * per_sample(self.large, output) + (1 - share) * per_sample(self.small, output)


class Posteriors:
    """The posterior of every step of a grid, computed in float64 from levels in float64.

    Also of one that leaves out training timesteps: its steps have the betas of Nichol and Dhariwal 2021, eq. 19.
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
        self._t = grid.t.flip(0)  # rising, as the search for a level needs
        self._tables: dict[torch.device, tuple[Tensor, list[Tensor]]] = {}

    def at(self, level: Level) -> Posterior:
        """The posteriors of the steps that start at `level` (() or (B,)), which is one of the grid, known by its t."""
        t, columns = self._on(level.t.device)
        index = torch.searchsorted(t, level.t.contiguous())
        return Posterior(*(column[index] for column in columns))

    def _on(self, device: torch.device) -> tuple[Tensor, list[Tensor]]:
        """The table on a device, moved there once: every move makes a GPU and its host wait for each other."""
        if device not in self._tables:
            self._tables[device] = self._t.to(device), [column.to(device) for column in self._columns]
        return self._tables[device]
