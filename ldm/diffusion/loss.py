"""The denoising loss and the loss of a learned variance."""

from __future__ import annotations

from torch import Tensor

from ldm.config.diffusion import DiffusionConfig
from ldm.diffusion.bound import Decoder, bound_term
from ldm.diffusion.denoiser import Denoised
from ldm.diffusion.level import Level
from ldm.diffusion.posterior import Posteriors
from ldm.diffusion.prediction import make_prediction
from ldm.diffusion.schedule import make_schedule
from ldm.diffusion.weighting import make_weighting


class DenoisingLoss:
    """Weighted mean squared error of the network's output (Ho et al. 2020, eq. 14; Hang et al. 2023, eq. 8)."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.prediction = make_prediction(config.prediction)
        self.weight = make_weighting(config)

    def __call__(self, output: Tensor, target: Tensor, level: Level) -> Tensor:
        """Return the loss of each sample (B,), in float32, for outputs and targets (B, ...) at levels (B,)."""
        error = (output.float() - target.float()).square().flatten(1).mean(1)  # (B,)
        return self.weight(level).to(error) * error


class VarianceLoss:
    """The second term of L_hybrid = L_simple + 0.001 L_vlb, for a learned variance (Nichol and Dhariwal 2021, eq. 16).

    L_vlb is in bits per dimension, as in the paper's tables and its released code. It is estimated from one timestep
    per sample and therefore multiplied by the number of timesteps. No gradient flows to the predicted image, only to
    the variance (section 3.1). `decoder` is that of `variational_bound`.
    """

    share = 0.001

    def __init__(self, config: DiffusionConfig, decoder: Decoder = "gaussian") -> None:
        self.prediction, self.decoder = make_prediction(config.prediction), decoder
        self.timesteps = config.schedule.num_train_timesteps
        self.posteriors = Posteriors(make_schedule(config.schedule).chain())

    def __call__(self, output: Tensor, variance: Tensor, x0: Tensor, noise: Tensor, level: Level) -> Tensor:
        """Return the loss of each sample (B,), in float32, for the two halves of the output, each (B, C, ...)."""
        x0, noise, output = x0.float(), noise.float(), output.detach().float()
        posterior = self.posteriors.at(level)
        seen = self.prediction.to_x0(level.noisy(x0, noise), output, level)
        denoised = Denoised(seen, output, posterior.learned(variance.float()))
        return self.share * (self.timesteps * bound_term(posterior, denoised, x0, self.decoder))
