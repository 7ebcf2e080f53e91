"""From an image to the noise that DDIM makes it of."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.level import Grid
from ldm.diffusion.samplers.step import Step


def invert(denoiser: Denoiser, x: Tensor, grid: Grid) -> Iterator[Step]:
    """Walk a grid backwards, from the image `x` (B, ...) at its last level to noise at its first; one call a step.

    DDIM's step solved for where it began (Dhariwal and Nichol 2021, appendix F): it needs the noise that the network
    sees at its noisier end, and takes for it what the network, told the time of that end, sees at the nearer one. So
    the network is called at the same times as in sampling, and sampling leads back up to an error of first order.
    An image without any noise is seen as if at the noisier end altogether, since only there noise follows from it.
    """
    for level, following in itertools.pairwise(reversed(grid.levels)):
        seen = replace(level, t=following.t) if level.sigma > 0 else following
        denoised = denoiser(x, seen)
        ratio = following.alpha / level.alpha
        x = ratio * x + (following.sigma - ratio * level.sigma) * seen.noise_in(x, denoised.x0)
        yield Step(x, following, denoised)
