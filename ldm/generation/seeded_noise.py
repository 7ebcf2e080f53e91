"""Random numbers of images that know nothing of each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class SeededNoise:
    """Standard normal numbers for a batch, each sample's from its own generator on the CPU.

    So a seed gives the same numbers on every device and in every batch.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = list(seeds)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, x: Tensor) -> Tensor:
        """The next numbers, in the shape, type and place of `x` (B, ...)."""
        drawn = [torch.randn(x.shape[1:], generator=generator) for generator in self.generators]
        return torch.stack(drawn).to(x)
