"""Guidance: denoisers made from denoisers, so that samplers know nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoised, Denoiser
from ldm.diffusion.level import Level, per_sample
from ldm.diffusion.prediction import Prediction

C = TypeVar("C")  # what a network is told of an image, whatever it is


def classifier_free(
    condition: Callable[..., Denoiser],
    positive: C,
    negative: C,
    prediction: Prediction,
    scale: float,
    rescale: float = 0.0,
) -> Denoiser:
    """Classifier-free guidance: output = negative + scale * (positive - negative) (Ho and Salimans 2022, eq. 6).

    `condition` makes a denoiser of one condition, or of several whose samples lie behind each other in the batch:
    `negative` (the empty or a negative prompt) and `positive`, of B samples each, share one network call. A `scale` of
    1 is no guidance: the denoiser of `positive` itself. `rescale` between 0 and 1 draws the output's standard
    deviation back to that of the unguided one (Lin et al. 2024, eq. 15 and 16), which models with zero terminal
    signal-to-noise ratio need at large scales. A learned variance is that of `positive`.
    """
    if scale == 1:
        return condition(positive)
    both = condition(negative, positive)

    def denoise(x: Tensor, level: Level) -> Denoised:
        denoised = both(torch.cat([x, x]), level)
        without, conditional = denoised.output.chunk(2)
        output = without + scale * (conditional - without)
        if rescale:
            output = _rescaled(output, conditional, rescale)
        log_variance = None if denoised.log_variance is None else denoised.log_variance.chunk(2)[1]
        return Denoised(prediction.to_x0(x, output, level), output, log_variance)

    return denoise


def composed(
    condition: Callable[..., Denoiser],
    parts: C,
    owners: Tensor,
    weights: Tensor,
    negative: C,
    prediction: Prediction,
    scale: float,
    rescale: float = 0.0,
) -> Denoiser:
    """Several conditions for each image: without + sum_i w_i (conditional_i - without) (Liu et al. 2022, eq. 11).

    `parts` has the conditions of all images behind each other, `owners` (R,) the image that each belongs to, and
    `weights` (R,) what it counts; `negative` has B. All share one network call. That sum takes the place of the
    conditional output in classifier-free guidance, to which `scale` and `rescale` belong; a learned variance is that of
    `negative`.
    """
    everything = condition(negative, parts)

    def denoise(x: Tensor, level: Level) -> Denoised:
        denoised, count = everything(torch.cat([x, x[owners]]), level), len(x)
        without, conditional = denoised.output[:count], denoised.output[count:]
        pulls = per_sample(weights, conditional) * (conditional - without[owners])  # (R, ...)
        together = without.index_add(0, owners, pulls)
        output = without + scale * (together - without)
        if rescale:
            output = _rescaled(output, together, rescale)
        log_variance = None if denoised.log_variance is None else denoised.log_variance[:count]
        return Denoised(prediction.to_x0(x, output, level), output, log_variance)

    return denoise


def within(guided: Denoiser, plain: Denoiser, low: float, high: float) -> Denoiser:
    """Guidance at levels with low < sigma / alpha <= high alone (Kynkaanniemi et al. 2024, eq. 6); `plain` elsewhere.

    Where the plain denoiser stands in, a step costs one network call on half the batch.
    """

    def denoise(x: Tensor, level: Level) -> Denoised:
        ratio = level.sigma / level.alpha  # infinite where there is no signal
        return (guided if low < ratio <= high else plain)(x, level)

    return denoise


def thresholded(denoiser: Denoiser, share: float, limit: float) -> Denoiser:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3): what is too large in an image is cut, and all shrinks.

    s is the smallest magnitude that a `share` of the numbers of an image x0 do not exceed. Where it is above `limit`,
    which the data seldom exceed, x0 is cut to [-s, s] and multiplied by limit / s; other images are cut to
    [-limit, limit].
    """

    def denoise(x: Tensor, level: Level) -> Denoised:
        denoised = denoiser(x, level)
        size = torch.quantile(denoised.x0.abs().flatten(1), share, dim=1).clamp(min=limit)
        size = per_sample(size, denoised.x0)  # (B, 1, ...)
        return denoised._replace(x0=denoised.x0.clamp(-size, size) * (limit / size))

    return denoise


def keeping(denoiser: Denoiser, image: Tensor, mask: Tensor) -> Denoiser:
    """See `image` (B, C, h, w) where `mask` (B, 1, h, w) is 0, so that a sampler ends with it there.

    What is known is put into every x0, and any sampler carries it along (the replacement of Song et al. 2021, appendix
    I.2, in terms of x0); the rest is drawn to suit it, by a model that was not trained for it.
    """

    def denoise(x: Tensor, level: Level) -> Denoised:
        denoised = denoiser(x, level)
        return denoised._replace(x0=mask * denoised.x0 + (1 - mask) * image)

    return denoise


def _rescaled(output: Tensor, conditional: Tensor, share: float) -> Tensor:
    axes = tuple(range(1, output.ndim))
    ratio = conditional.std(axes, keepdim=True) / output.std(axes, keepdim=True)  # (B, 1, ...)
    return output * (share * ratio + (1 - share))
