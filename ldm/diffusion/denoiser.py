"""Denoisers: the contract through which samplers and guidance call a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ldm.diffusion.level import Level
from ldm.diffusion.posterior import Posteriors
from ldm.diffusion.prediction import Prediction


class Denoised(NamedTuple):
    """The prediction for a noisy `x`: the image, and the network's output from which it was computed.

    Samplers read `x0`; guidance may change it without changing the output. `log_variance` describes the noise in a
    step of DDPM, from networks that learn it and for models with the large variance. `unclipped` is the image before
    clipping, whose noise DDIM keeps.
    """

    x0: Tensor
    output: Tensor
    log_variance: Tensor | None = None
    unclipped: Tensor | None = None


Denoiser = Callable[[Tensor, Level], Denoised]  # (x (B, ...), level ()) -> Denoised
Network = Callable[[Tensor, Tensor], Tensor]  # (x (B, C, ...), t ()) -> output (B, C, ...), or 2 C channels


def make_denoiser(network: Network, prediction: Prediction, posteriors: Posteriors | None = None) -> Denoiser:
    """Make a denoiser from a network of `x` and `t` that regresses `prediction`.

    With the `posteriors` of a grid, the second half of the network's output (B, 2 C, ...) is a learned variance; such
    a denoiser supports the levels of that grid only.
    """

    def denoise(x: Tensor, level: Level) -> Denoised:
        output, log_variance = network(x, level.t), None
        if posteriors is not None:
            output, variance = output.chunk(2, dim=1)
            log_variance = posteriors.at(level).learned(variance)
        return Denoised(prediction.to_x0(x, output, level), output, log_variance)

    return denoise
