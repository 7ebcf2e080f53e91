"""The denoising loss and how much each level counts in it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.config import DiffusionConfig, WeightingConfig
from ldm.diffusion.level import Level
from ldm.diffusion.prediction import Prediction


class DenoisingLoss:
    """Weighted mean squared error of the network's output (Ho et al. 2020, eq. 14; Hang et al. 2023, eq. 8)."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.weighting = config.weighting
        self.prediction = Prediction(config.prediction)

    def __call__(self, output: Tensor, target: Tensor, level: Level) -> Tensor:
        """The loss of each sample (B,), in float32, for outputs and targets (B, ...) at levels (B,)."""
        error = (output.float() - target.float()).square().flatten(1).mean(1)  # (B,)
        return self.weight(level).to(error) * error

    def weight(self, level: Level) -> Tensor:
        """How much the squared error of the output counts at `level`, in its shape."""
        return _weightings[self.weighting.kind](self.weighting, self.prediction, level)


def _uniform(config: WeightingConfig, prediction: Prediction, level: Level) -> Tensor:
    return torch.ones_like(level.alpha)


def _min_snr(config: WeightingConfig, prediction: Prediction, level: Level) -> Tensor:
    """min(SNR, gamma) on the error of x0 (Hang et al. 2023, section 3.4)."""
    return prediction.output_weight(level.snr.clamp(max=config.gamma), level)


_weightings: dict[str, Callable[[WeightingConfig, Prediction, Level], Tensor]] = {
    "uniform": _uniform,
    "min_snr": _min_snr,
}
