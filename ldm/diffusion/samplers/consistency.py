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
    """Predict the image in one step, then return to the next level with fresh noise; one call per step.

    Song et al. 2023, algorithm 1, with the boundary condition of Luo et al. 2023, section 4.1; distilled
    checkpoints expect these values of `timestep_scaling` and `data_deviation`. The last step ends at the image itself,
    whatever the last level of the grid.
    """

    timestep_scaling: float = 10.0
    data_deviation: float = 0.5

    def __call__(self, denoiser: Denoiser, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Step]:
        """Sample from `x` at the first level of the grid; `noise` is called in every step except the last."""
        for index, (level, following) in enumerate(grid.steps(), start=1):
            denoised = denoiser(x, level)
            of_x, of_x0 = self._boundary(level)
            x = of_x * x + of_x0 * denoised.x0
            if index < len(grid):
                x = following.noisy(x, noise(x))
            yield Step(x, following, denoised)

    def _boundary(self, level: Level) -> tuple[Tensor, Tensor]:
        """Return c_skip and c_out, which make the output at t = 0 the input itself."""
        time = self.timestep_scaling * level.t.double()
        squared = time**2 + self.data_deviation**2
        return self.data_deviation**2 / squared, time / squared.sqrt()


lcm = Consistency()
