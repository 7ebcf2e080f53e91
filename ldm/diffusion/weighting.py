"""Loss weightings: how much the squared error of the network's output counts at each level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ldm.config.diffusion import DiffusionConfig, WeightingConfig
from ldm.diffusion.level import Level
from ldm.diffusion.posterior import Posteriors
from ldm.diffusion.prediction import make_prediction
from ldm.diffusion.schedule import make_schedule
from ldm.registry import WEIGHTINGS


class Weighting:
    """Weight all levels equally; the base class of other weightings."""

    section: ClassVar[type[WeightingConfig]] = WeightingConfig
    needs_bound: ClassVar[bool] = False  # whether it is defined by steps between discrete timesteps

    def __init__(self, config: DiffusionConfig) -> None:
        self.config: Any = config.weighting
        self.prediction = make_prediction(config.prediction)

    def __call__(self, level: Level) -> Tensor:
        """Return the weights at `level`, in its shape."""
        return torch.ones_like(level.alpha)


class SNRWeighting(Weighting, ABC):
    """A weighting that is a function of the signal-to-noise ratio."""

    @abstractmethod
    def x0_weight(self, snr: Tensor) -> Tensor:
        """Return the weight of the squared error of x0."""

    def __call__(self, level: Level) -> Tensor:
        """Return the weights at `level`, in its shape."""
        return self.prediction.output_weight(self.x0_weight(level.snr), level)


class MinSNRConfig(WeightingConfig):
    """Options of min-SNR weightings."""

    kind: str = "min_snr"
    gamma: float = Field(5.0, gt=0)  # SNR above which the weight of x0 is constant (in the paper of soft_min_snr: 4)


class MinSNR(SNRWeighting):
    """Weight the error of x0 by min(SNR, gamma) (Hang et al. 2023, section 3.4)."""

    section = MinSNRConfig

    def x0_weight(self, snr: Tensor) -> Tensor:
        """Return the weight of the squared error of x0."""
        return snr.clamp(max=self.config.gamma)


class SoftMinSNR(SNRWeighting):
    """SNR gamma / (SNR + gamma) on x0, a smooth min-SNR (Crowson et al. 2024, with gamma 4)."""

    section = MinSNRConfig

    def x0_weight(self, snr: Tensor) -> Tensor:
        """Return the weight of the squared error of x0."""
        gamma: float = self.config.gamma
        return gamma / (1 + gamma / snr)


class P2Config(WeightingConfig):
    """Options of P2 weighting."""

    kind: str = "p2"
    p2_gamma: float = Field(1.0, ge=0)  # how much levels of high SNR are weighted down; 0: not at all
    p2_k: float = Field(1.0, gt=0)  # SNR from which on they are


class P2(SNRWeighting):
    """1 / (k + SNR)^gamma on the noise, so SNR times that on x0 (Choi et al. 2022, eq. 8)."""

    section = P2Config

    def x0_weight(self, snr: Tensor) -> Tensor:
        """Return the weight of the squared error of x0."""
        return snr / (self.config.p2_k + snr) ** self.config.p2_gamma


class VLB(Weighting):
    """The weight of the error in L_{t-1} with the small variance, in nats (Ho et al. 2020, eq. 8 and 12).

    On x0 it is (SNR(t - 1) - SNR(t)) / 2 (Kingma et al. 2021, section 4.1). At the first timestep, where that is
    infinite, a Gaussian decoder has the variance of the step before.
    """

    needs_bound = True

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__(config)
        self.posteriors = Posteriors(make_schedule(config.schedule).chain())

    def __call__(self, level: Level) -> Tensor:
        """Return the weights at `level`, in its shape."""
        posterior = self.posteriors.at(level)
        on_x0 = posterior.of_x0.square() * (-posterior.small).exp() / 2
        return self.prediction.output_weight(on_x0.to(level.alpha), level)


def make_weighting(config: DiffusionConfig) -> Weighting:
    """Build the loss weighting of a configuration."""
    weighting: Weighting = WEIGHTINGS[config.weighting.kind](config)
    return weighting
