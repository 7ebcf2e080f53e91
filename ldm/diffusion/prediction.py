"""Predictions: what the network regresses, and how the image and the noise follow from it.

An output is a * x0 + b * noise. Together with x = alpha * x0 + sigma * noise that makes two equations with the
determinant alpha * b - sigma * a: x0 and noise follow from x and the output unless it is 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ldm.diffusion.level import Level
from ldm.registry import PREDICTIONS


class Prediction(ABC):
    """A linear parameterisation of the network's output; subclasses define `coefficients`."""

    needs_signal: ClassVar[bool] = False  # whether x0 cannot be recovered where alpha is 0
    diffusers_name: ClassVar[str | None] = None  # `prediction_type` of diffusers' schedulers

    @abstractmethod
    def coefficients(self, level: Level) -> tuple[Tensor, Tensor]:
        """Return a and b at a level, in its shape."""

    def target(self, x0: Tensor, noise: Tensor, level: Level) -> Tensor:
        """Return the correct output (B, ...) at `level` (() or (B,)) for images and noise (B, ...)."""
        a, b = self.coefficients(level.like(x0))
        return a * x0 + b * noise

    def to_x0(self, x: Tensor, output: Tensor, level: Level) -> Tensor:
        """Convert the network's output at noisy `x` to the noise-free image; all (B, ...)."""
        level = level.like(x)
        a, b = self.coefficients(level)
        determinant = level.alpha * b - level.sigma * a
        return (b / determinant) * x - (level.sigma / determinant) * output

    def to_eps(self, x: Tensor, output: Tensor, level: Level) -> Tensor:
        """Convert the network's output at noisy `x` to the noise; all (B, ...)."""
        level = level.like(x)
        a, b = self.coefficients(level)
        determinant = level.alpha * b - level.sigma * a
        return (level.alpha / determinant) * output - (a / determinant) * x

    def output_weight(self, x0_weight: Tensor, level: Level) -> Tensor:
        """Convert a weight on the squared error of x0 to one on the squared error of the output, in the level's shape.

        x0 changes by -sigma / determinant where the output changes by 1.
        """
        a, b = self.coefficients(level)
        return x0_weight * (level.sigma / (b * level.alpha - a * level.sigma)).square()


class Eps(Prediction):
    """The noise (Ho et al. 2020, eq. 14)."""

    needs_signal = True
    diffusers_name = "epsilon"

    def coefficients(self, level: Level) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(level.alpha), torch.ones_like(level.alpha)


class X0(Prediction):
    """The image (Salimans and Ho 2022, section 4)."""

    diffusers_name = "sample"

    def coefficients(self, level: Level) -> tuple[Tensor, Tensor]:
        return torch.ones_like(level.alpha), torch.zeros_like(level.alpha)


class V(Prediction):
    """The velocity of a variance-preserving path (Salimans and Ho 2022, appendix D)."""

    diffusers_name = "v_prediction"

    def coefficients(self, level: Level) -> tuple[Tensor, Tensor]:
        return -level.sigma, level.alpha


class Flow(Prediction):
    """The velocity of a straight path, noise - x0 (Liu et al. 2023, eq. 1)."""

    diffusers_name = "flow_prediction"

    def coefficients(self, level: Level) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(level.alpha), torch.ones_like(level.alpha)


def make_prediction(kind: str) -> Prediction:
    """Return the prediction with a registered name."""
    return PREDICTIONS[kind]()
