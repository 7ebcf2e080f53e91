"""What the network regresses, and how the image and the noise follow from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ldm.diffusion.level import Level

# The output is a * x0 + b * noise; each row gives (a, b) at a level.
_rows: dict[str, Callable[[Level], tuple[Tensor, Tensor]]] = {
    "eps": lambda level: (torch.zeros_like(level.alpha), torch.ones_like(level.alpha)),  # Ho et al. 2020, eq. 14
    "x0": lambda level: (torch.ones_like(level.alpha), torch.zeros_like(level.alpha)),  # Salimans and Ho 2022, sec. 4
    "v": lambda level: (-level.sigma, level.alpha),  # Salimans and Ho 2022, appendix D
    "flow": lambda level: (-torch.ones_like(level.alpha), torch.ones_like(level.alpha)),  # Liu et al. 2023, eq. 1
}


class Prediction:
    """A linear parameterisation: the network's output stands for a * x0 + b * noise.

    With x = alpha * x0 + sigma * noise that makes two equations, whose determinant alpha * b - sigma * a is
    alpha (eps), -sigma (x0), alpha^2 + sigma^2 (v) and alpha + sigma (flow): x0 and noise follow unless it is 0.
    """

    def __init__(self, kind: Literal["eps", "x0", "v", "flow"]) -> None:
        self.kind = kind
        self._row = _rows[kind]

    def target(self, x0: Tensor, noise: Tensor, level: Level) -> Tensor:
        """What the network should output at `level` (() or (B,)), in the shape of `x0`."""
        a, b = self._row(level.like(x0))
        return a * x0 + b * noise

    def to_x0(self, x: Tensor, output: Tensor, level: Level) -> Tensor:
        """The noise-free image that `output` at noisy `x` stands for."""
        level = level.like(x)
        a, b = self._row(level)
        determinant = level.alpha * b - level.sigma * a
        return (b / determinant) * x - (level.sigma / determinant) * output

    def to_eps(self, x: Tensor, output: Tensor, level: Level) -> Tensor:
        """The noise that `output` at noisy `x` stands for."""
        level = level.like(x)
        a, b = self._row(level)
        determinant = level.alpha * b - level.sigma * a
        return (level.alpha / determinant) * output - (a / determinant) * x

    def output_weight(self, x0_weight: Tensor, level: Level) -> Tensor:
        """The weight on the output's squared error that equals `x0_weight` on the error of x0.

        Both have the level's shape. Since x0 moves by -sigma / determinant where the output moves by one, it is
        x0_weight * (sigma / (b * alpha - a * sigma))^2.
        """
        a, b = self._row(level)
        return x0_weight * (level.sigma / (b * level.alpha - a * level.sigma)).square()
