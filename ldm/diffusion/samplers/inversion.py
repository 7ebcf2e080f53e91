"""DDIM inversion: from an image to the noise from which DDIM generates it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.level import Grid
from ldm.diffusion.samplers.step import Step


def invert(denoiser: Denoiser, x: Tensor, grid: Grid) -> Iterator[Step]:
    """Run a grid backwards, from the image `x` (B, ...) at its last level to noise at its first; one call per step.

    DDIM's step is solved for its start (Dhariwal and Nichol 2021, appendix F). That needs the noise predicted at the
    noisier end, which is approximated by calling the network on the less noisy x with the time of the noisier end. So
    the network is called at the same times as in sampling, and sampling returns to the image up to a first-order error.
    An image without noise is treated as if it were at the noisier level, since no noise follows from it otherwise.
    """
    for level, following in itertools.pairwise(reversed(grid.levels)):
        seen = replace(level, t=following.t) if level.sigma > 0 else following
        denoised = denoiser(x, seen)
        ratio = following.alpha / level.alpha
        x = ratio * x + (following.sigma - ratio * level.sigma) * seen.noise_in(x, denoised.x0)
        yield Step(x, following, denoised)
