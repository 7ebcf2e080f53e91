"""The denoising loss, how much each level counts in it, and the loss of a learned variance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.config.diffusion import DiffusionConfig, WeightingConfig
from ldm.diffusion.bound import Decoder, bound_term
from ldm.diffusion.denoiser import Denoised
from ldm.diffusion.level import Level
from ldm.diffusion.posterior import Posteriors
from ldm.diffusion.prediction import Prediction
from ldm.diffusion.schedule import make_schedule

Weight = Callable[[Level], Tensor]  # how much the squared error of the output counts at a level, in its shape


class DenoisingLoss:
    """Weighted mean squared error of the network's output (Ho et al. 2020, eq. 14; Hang et al. 2023, eq. 8)."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.prediction = Prediction(config.prediction)
        self._weight = _weightings[config.weighting.kind](config)

    def __call__(self, output: Tensor, target: Tensor, level: Level) -> Tensor:
        """The loss of each sample (B,), in float32, for outputs and targets (B, ...) at levels (B,)."""
        error = (output.float() - target.float()).square().flatten(1).mean(1)  # (B,)
        return self.weight(level).to(error) * error

    def weight(self, level: Level) -> Tensor:
        """How much the squared error of the output counts at `level`, in its shape."""
        return self._weight(level)


class VarianceLoss:
    """What a learned variance adds to L_simple in L_hybrid = L_simple + 0.001 L_vlb (Nichol and Dhariwal 2021, eq. 16).

    L_vlb is in bits per dimension, as in the paper's tables and its released code, and is estimated from one timestep
    a sample, so it counts as often as there are timesteps. The image that the network sees is taken as given: only
    the variance learns from it (section 3.1). `decoder` is that of `variational_bound`.
    """

    share = 0.001

    def __init__(self, config: DiffusionConfig, decoder: Decoder = "gaussian") -> None:
        self.prediction, self.decoder = Prediction(config.prediction), decoder
        self.schedule = make_schedule(config.schedule)
        self.posteriors = Posteriors(self.schedule.chain())

    def __call__(self, output: Tensor, variance: Tensor, x0: Tensor, noise: Tensor, level: Level) -> Tensor:
        """The loss of each sample (B,), in float32, for the two halves of the network's output, each (B, C, ...)."""
        x0, noise, output = x0.float(), noise.float(), output.detach().float()
        posterior = self.posteriors.at(level)
        seen = self.prediction.to_x0(level.noisy(x0, noise), output, level)
        denoised = Denoised(seen, output, posterior.learned(variance.float()))
        terms = self.schedule.config.num_train_timesteps * bound_term(posterior, denoised, x0, self.decoder)
        return self.share * terms


# --- weightings -------------------------------------------------------------------------------------------------------


def _uniform(config: DiffusionConfig) -> Weight:
    return lambda level: torch.ones_like(level.alpha)


def _of_snr(on_x0: Callable[[WeightingConfig, Tensor], Tensor]) -> Callable[[DiffusionConfig], Weight]:
    """A weighting out of what the squared error of x0 counts at a signal-to-noise ratio."""

    def make(config: DiffusionConfig) -> Weight:
        prediction = Prediction(config.prediction)
        return lambda level: prediction.output_weight(on_x0(config.weighting, level.snr), level)

    return make


def _min_snr(config: WeightingConfig, snr: Tensor) -> Tensor:
    """min(SNR, gamma) (Hang et al. 2023, section 3.4)."""
    return snr.clamp(max=config.gamma)


def _soft_min_snr(config: WeightingConfig, snr: Tensor) -> Tensor:
    """SNR gamma / (SNR + gamma), the same without its corner (Crowson et al. 2024, where gamma is 4)."""
    return config.gamma / (1 + config.gamma / snr)


def _p2(config: WeightingConfig, snr: Tensor) -> Tensor:
    """1 / (k + SNR)^gamma on the noise, where uniform counts 1, so SNR times that here (Choi et al. 2022, eq. 8)."""
    return snr / (config.p2_k + snr) ** config.p2_gamma


def _vlb(config: DiffusionConfig) -> Weight:
    """What the error counts in L_{t-1} with the small variance, in nats (Ho et al. 2020, eq. 8 and 12).

    On x0 that is (SNR(t - 1) - SNR(t)) / 2 (Kingma et al. 2021, section 4.1); at the first timestep, where it would be
    infinite, a Gaussian decoder has the variance of the step before.
    """
    prediction = Prediction(config.prediction)
    posteriors = Posteriors(make_schedule(config.schedule).chain())

    def weight(level: Level) -> Tensor:
        posterior = posteriors.at(level)
        on_x0 = posterior.of_x0.square() * (-posterior.small).exp() / 2
        return prediction.output_weight(on_x0.to(level.alpha), level)

    return weight


_weightings: dict[str, Callable[[DiffusionConfig], Weight]] = {
    "uniform": _uniform,
    "min_snr": _of_snr(_min_snr),
    "soft_min_snr": _of_snr(_soft_min_snr),
    "p2": _of_snr(_p2),
    "vlb": _vlb,
}
