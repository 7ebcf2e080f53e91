"""Guidance by gradients of a probability p(y | x) of another model than the network.

By Tweedie's formula the predicted image at a level is x0 = (x + sigma^2 score(x)) / alpha, and by Bayes' rule the score
given y is score(x) + grad log p(y | x). So guidance adds sigma^2 / alpha * grad log p(y | x) to x0, which subtracts
sigma * grad log p(y | x) from the noise, for every prediction and every sampler. At a level without signal x is
independent of y, and nothing is added.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoised, Denoiser
from ldm.diffusion.level import Level

LogProbability = Callable[[Tensor, Level], Tensor]  # (x (B, ...), level ()) -> log p(y | x) (B,)
Likeness = Callable[[Tensor], Tensor]  # x0 (B, ...) -> log p(y | x0) (B,), up to a constant


def by_classifier(denoiser: Denoiser, log_probability: LogProbability, scale: float) -> Denoiser:
    """Guide by a classifier of noisy images (Dhariwal and Nichol 2021, algorithm 2).

    `scale` multiplies the gradient of `log_probability` with respect to x; 1 is Bayes' rule. At eta 1 a step is that of
    their algorithm 1 with the large variance, up to a factor of sqrt(1 - beta). Do not call this in inference mode.
    """

    def denoise(x: Tensor, level: Level) -> Denoised:
        denoised = denoiser(x, level)
        if level.alpha == 0:
            return denoised
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(scale * log_probability(leaf, level).sum(), leaf)
        return _moved(denoised, gradient, level)

    return denoise


def by_image(denoiser: Denoiser, likeness: Likeness, scale: float) -> Denoiser:
    """Guide by a function of clean images, with p(y | x) approximated by p(y | x0(x)).

    This is CLIP guidance on the predicted image (Crowson 2021) and, for other functions, Chung et al. 2023, eq. 11. The
    gradient with respect to x flows through `likeness` and through the network. Do not call this in inference mode.
    """

    def denoise(x: Tensor, level: Level) -> Denoised:
        if level.alpha == 0:
            return denoiser(x, level)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            denoised = denoiser(leaf, level)
            (gradient,) = torch.autograd.grad(scale * likeness(denoised.x0).sum(), leaf)
        return _moved(_detached(denoised), gradient, level)

    return denoise


def _moved(denoised: Denoised, gradient: Tensor, level: Level) -> Denoised:
    """Add the gradient of log p(y | x), (B, ...), to the score and return the resulting prediction."""
    return denoised._replace(x0=denoised.x0 + level.sigma**2 / level.alpha * gradient)


def _detached(denoised: Denoised) -> Denoised:
    log_variance = None if denoised.log_variance is None else denoised.log_variance.detach()
    return Denoised(denoised.x0.detach(), denoised.output.detach(), log_variance)
