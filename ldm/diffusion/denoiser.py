"""Denoisers: the one contract through which samplers and guidance see a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ldm.diffusion.level import Level
from ldm.diffusion.prediction import Prediction


class Denoised(NamedTuple):
    """What a denoiser says about a noisy `x`: the picture it sees, and the network's output behind that.

    `log_variance` is that of the step's noise, from networks that learn it.
    """

    x0: Tensor
    output: Tensor
    log_variance: Tensor | None = None


Denoiser = Callable[[Tensor, Level], Denoised]  # (x (B, ...), level ()) -> Denoised
Network = Callable[[Tensor, Tensor], Tensor]  # (x (B, ...), t ()) -> output (B, ...)


def make_denoiser(network: Network, prediction: Prediction) -> Denoiser:
    """A denoiser out of a network that is told `t` and regresses `prediction`."""

    def denoise(x: Tensor, level: Level) -> Denoised:
        output = network(x, level.t)
        return Denoised(prediction.to_x0(x, output, level), output)

    return denoise
