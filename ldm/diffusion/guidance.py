"""Guidance: functions from denoisers to a guided denoiser, which works with every sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoised, Denoiser
from ldm.diffusion.level import Level, per_sample
from ldm.diffusion.prediction import Prediction

C = TypeVar("C")  # the conditioning of a network


def classifier_free(
    condition: Callable[..., Denoiser],
    positive: C,
    negative: C,
    prediction: Prediction,
    scale: float,
    rescale: float = 0.0,
) -> Denoiser:
    """Apply classifier-free guidance: output = negative + scale * (positive - negative) (Ho and Salimans 2022, eq. 6).

    `negative` (the empty or a negative prompt) and `positive`, of B samples each, share one network call. A learned
    variance is that of `positive`.

    Args:
        condition: makes a denoiser from one conditioning, or from several that are concatenated in the batch.
        scale: 1 is no guidance and returns the denoiser of `positive`.
        rescale: from 0 to 1, how far the output's standard deviation returns to the conditional output's
            (Lin et al. 2024, eq. 15 and 16); models with zero terminal SNR need it at large scales.
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


def text_and_image(
    condition: Callable[..., Denoiser],
    both: C,
    image: C,
    neither: C,
    prediction: Prediction,
    scale: float,
    image_scale: float,
    rescale: float = 0.0,
) -> Denoiser:
    """Guide by a text and an image with a scale each (Brooks et al. 2023, eq. 3).

    output = neither + image_scale * (image - neither) + scale * (both - image). The three conditionings, of B samples
    each, share one network call. A learned variance is that of `both`. `rescale` as in `classifier_free`.
    """
    if image_scale == 1:
        return classifier_free(condition, both, image, prediction, scale, rescale)
    everything = condition(neither, image, both)

    def denoise(x: Tensor, level: Level) -> Denoised:
        denoised = everything(torch.cat([x, x, x]), level)
        without, of_image, of_both = denoised.output.chunk(3)
        output = without + image_scale * (of_image - without) + scale * (of_both - of_image)
        if rescale:
            output = _rescaled(output, of_both, rescale)
        log_variance = None if denoised.log_variance is None else denoised.log_variance.chunk(3)[2]
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
    """Compose several conditionings per image: without + sum_i w_i (conditional_i - without) (Liu et al. 2022, eq. 11).

    This sum replaces the conditional output of classifier-free guidance, with its `scale` and `rescale`. All share one
    network call. A learned variance is that of `negative`.

    Args:
        parts: the conditionings of all images, R in all.
        owners: for each part, the index of its image, (R,).
        weights: of each part, (R,).
        negative: one conditioning for each of the B images.
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
    """Guide only at levels with low < sigma / alpha <= high (Kynkaanniemi et al. 2024, eq. 6).

    Other levels use `plain`, which calls the network on half the batch.
    """

    def denoise(x: Tensor, level: Level) -> Denoised:
        ratio = level.sigma / level.alpha  # infinite where there is no signal
        return (guided if low < ratio <= high else plain)(x, level)

    return denoise


def thresholded(denoiser: Denoiser, share: float, limit: float) -> Denoiser:
    """Apply dynamic thresholding (Saharia et al. 2022, section 2.3).

    s is the quantile `share` of the magnitudes in an image x0. If it is above `limit`, which the data rarely exceed, x0
    is clamped to [-s, s] and multiplied by limit / s; other images are clamped to [-limit, limit].
    """

    def denoise(x: Tensor, level: Level) -> Denoised:
        denoised = denoiser(x, level)
        size = torch.quantile(denoised.x0.abs().flatten(1), share, dim=1).clamp(min=limit)
        size = per_sample(size, denoised.x0)  # (B, 1, ...)
        return denoised._replace(x0=denoised.x0.clamp(-size, size) * (limit / size))

    return denoise


def keeping(denoiser: Denoiser, image: Tensor, mask: Tensor) -> Denoiser:
    """Inpaint: keep `image` (B, C, h, w) where `mask` (B, 1, h, w) is 0.

    The known part replaces every predicted x0 (the replacement of Song et al. 2021, appendix I.2, in terms of x0), for
    any sampler and a model that was not trained for inpainting.
    """

    def denoise(x: Tensor, level: Level) -> Denoised:
        denoised = denoiser(x, level)
        return denoised._replace(x0=mask * denoised.x0 + (1 - mask) * image)

    return denoise


def _rescaled(output: Tensor, conditional: Tensor, share: float) -> Tensor:
    axes = tuple(range(1, output.ndim))
    ratio = conditional.std(axes, keepdim=True) / output.std(axes, keepdim=True)  # (B, 1, ...)
    return output * (share * ratio + (1 - share))
