"""The variational bound on the negative log likelihood, in bits per dimension (Ho et al. 2020, eq. 5)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ldm.diffusion.denoiser import Denoised, Denoiser
from ldm.diffusion.level import Grid, per_sample
from ldm.diffusion.posterior import Posterior, Posteriors
from ldm.errors import UserError

Decoder = Literal["discretised", "gaussian"]


class Bound(NamedTuple):
    """The terms of the bound in bits per dimension, one estimate a sample.

    `prior` is L_T (B,): how far the noisiest level is from the standard normal noise that sampling starts from.
    `steps` are L_{T-1} to L_0 (B, T), noisiest first: each step's distance from the posterior, and in the last, what
    the decoder still needs to say.
    """

    prior: Tensor
    steps: Tensor

    @property
    def total(self) -> Tensor:
        """The bound of each sample, (B,)."""
        return self.prior + self.steps.sum(1)


@torch.no_grad()
def variational_bound(
    denoiser: Denoiser,
    x0: Tensor,
    grid: Grid,
    noise: Callable[[Tensor], Tensor],
    decoder: Decoder = "discretised",
    variance: Literal["small", "large"] = "small",
) -> Bound:
    """An unbiased estimate of the bound for `x0` (B, ...) along `grid`, with one draw of `noise` and one call a step.

    The grid of a model's own bound is `schedule.chain()`; a shorter one gives that of sampling in fewer steps. Each
    step has the variance that the denoiser learned, or else `variance`: "large" is right in the last steps for data
    that varies by much more than the first noise, where "small" stays a bit above it however many steps there are.

    Decoder "discretised" is for images whose values are among 256 from -1 to 1, and bounds the bits that storing
    them takes. "gaussian" is for latents and other real numbers: it bounds the negative logarithm of their density,
    which may be below 0 and is comparable only between models of the same latents. Raises UserError for a grid that
    does not end at the image itself.
    """
    if grid.levels[-1].sigma != 0:
        raise UserError("the variational bound needs a grid that ends without noise: a chain, or set_alpha_to_one")
    posteriors, terms = Posteriors(grid), []
    for level, _ in grid.steps():
        x = level.noisy(x0, noise(x0))
        posterior, denoised = posteriors.at(level), denoiser(x, level)
        if denoised.log_variance is None:
            fixed = torch.full_like(x0, getattr(posterior, variance).item())
            denoised = denoised._replace(log_variance=fixed)
        terms.append(bound_term(posterior, denoised, x0, decoder))
    first = grid.levels[0]
    prior = gaussian_kl(first.alpha * x0, 2 * first.sigma.log(), torch.zeros_like(x0))
    return Bound(_bits(prior), torch.stack(terms, dim=1))


def bound_term(posterior: Posterior, denoised: Denoised, x0: Tensor, decoder: Decoder) -> Tensor:
    """L_{t-1} of Ho et al. 2020, eq. 5, in bits per dimension (B,), for a denoiser's word with a variance.

    In steps to the image itself, which other samples of the batch may not be at, it is the decoder's L_0.
    """
    assert denoised.log_variance is not None
    # Both means have the same share of x_t, so the difference needs no x_t, and no digits are lost.
    error = per_sample(posterior.of_x0, x0) * (x0 - denoised.x0)
    divergence = gaussian_kl(error, per_sample(posterior.small, x0), denoised.log_variance)
    decoded = _decoders[decoder](x0, denoised.x0, denoised.log_variance)  # the last step's mean is its x0
    last = per_sample(posterior.last, x0, torch.bool).to(x0.device)
    return _bits(torch.where(last, decoded, divergence))


def gaussian_kl(difference: Tensor, log_variance: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL divergence, in nats and each dimension, of a normal distribution from another.

    `difference` is that of their means; they broadcast together.
    """
    ratio = log_variance - other_log_variance
    return 0.5 * (ratio.exp() - 1 - ratio + difference.square() * (-other_log_variance).exp())


def _bits(nats: Tensor) -> Tensor:
    return nats.flatten(1).mean(1) / math.log(2)


# --- negative log likelihood of x0 given the last step's normal distribution, in nats and each dimension --------------


def _discretised(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Of the bin of width 2 / 255 around each value, the outer ones open (Ho et al. 2020, eq. 13).

    The probability is the difference of two tails on the side of the mean where they are small, in logarithms, so
    that it does not run out of digits however far away the mean is.
    """
    deviation = (log_variance / 2).exp()
    lower = torch.where(x0 < -0.999, -math.inf, (x0 - mean - 1 / 255) / deviation)
    upper = torch.where(x0 > 0.999, math.inf, (x0 - mean + 1 / 255) / deviation)
    above = lower + upper > 0
    near = torch.special.log_ndtr(torch.where(above, -lower, upper))
    far = torch.special.log_ndtr(torch.where(above, -upper, lower))
    return -(near + torch.log(-torch.expm1(far - near)))


def _gaussian(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Of the density."""
    return 0.5 * (math.log(2 * math.pi) + log_variance + (x0 - mean).square() * (-log_variance).exp())


_decoders: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "discretised": _discretised,
    "gaussian": _gaussian,
}
