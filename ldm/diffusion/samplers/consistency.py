"""Multistep consistency sampling, as latent consistency models do it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.level import Grid, Level
from ldm.diffusion.samplers.step import Noise, Step


@dataclass(frozen=True)
class Consistency:
    """To the image in one step, and back to the next level with fresh noise; one call a step.

    Song et al. 2023, algorithm 1, with the boundary condition of Luo et al. 2023, section 4.1, whose
    `timestep_scaling` and `data_deviation` distilled checkpoints are made for. The last step gives the image itself,
    whatever the grid's last level.
    """

    timestep_scaling: float = 10.0
    data_deviation: float = 0.5

    def __call__(self, denoiser: Denoiser, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
        """Walk the grid from `x` at its first level; `noise` is asked once a step but in the last."""
        for index, (level, following) in enumerate(grid.steps(), start=1):
            denoised = denoiser(x, level)
            of_x, of_x0 = self._boundary(level)
            x = of_x * x + of_x0 * denoised.x0
            if index < len(grid):
                x = following.noisy(x, noise(x))
            yield Step(x, following, denoised)

    def _boundary(self, level: Level) -> tuple[Tensor, Tensor]:
        """c_skip and c_out, which make the image at t = 0 the input itself."""
        time = self.timestep_scaling * level.t.double()
        squared = time**2 + self.data_deviation**2
        return self.data_deviation**2 / squared, time / squared.sqrt()
