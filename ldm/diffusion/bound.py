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
    """The terms of the bound in bits per dimension, estimated for each sample.

    `prior` is L_T (B,), the divergence of the noisiest level from the standard normal noise that sampling starts from.
    `steps` are L_{T-1} to L_0 (B, T), noisiest first: the divergence of each step from the posterior, and the decoder's
    negative log likelihood in the last.
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
    """Estimate the bound for `x0` (B, ...) without bias, with one noise sample and one network call per step.

    Args:
        grid: `schedule.chain()` for the bound of the model; a shorter grid for that of sampling in fewer steps.
        decoder: "discretised" for images with 256 values from -1 to 1: the bound of the bits that store them.
            "gaussian" for latents and other real numbers: the bound of the negative log density, which may be below 0
            and is comparable only between models of the same latents.
        variance: of each step, unless the denoiser has a learned one. "large" is right in the last steps for data
            that varies much more than the first noise, where "small" leaves a gap however many steps there are. For
            discretised images the very last step has the small variance all the same, as in published bounds.

    Raises:
        UserError: for a grid that does not end at the image itself.
    """
    if grid.levels[-1].sigma != 0:
        raise UserError("the variational bound needs a grid that ends without noise: use a chain, or set_alpha_to_one")
    posteriors, terms = Posteriors(grid), []
    for level, _ in grid.steps():
        x = level.noisy(x0, noise(x0))
        posterior, denoised = posteriors.at(level), denoiser(x, level)
        if denoised.log_variance is None:
            fixed = _fixed_log_variance(posterior, variance, decoder)
            denoised = denoised._replace(log_variance=torch.full_like(x0, fixed.item()))
        terms.append(bound_term(posterior, denoised, x0, decoder))
    first = grid.levels[0]
    prior = gaussian_kl(first.alpha * x0, 2 * first.sigma.log(), torch.zeros_like(x0))
    return Bound(_bits(prior), torch.stack(terms, dim=1))


def _fixed_log_variance(posterior: Posterior, variance: Literal["small", "large"], decoder: Decoder) -> Tensor:
    """Return the log variance of a step, (); the large one as guided-diffusion's FIXED_LARGE for discretised images."""
    if variance == "large" and decoder == "discretised":
        return torch.where(posterior.last, posterior.small, posterior.large)
    return posterior.large if variance == "large" else posterior.small


def bound_term(posterior: Posterior, denoised: Denoised, x0: Tensor, decoder: Decoder) -> Tensor:
    """Compute L_{t-1} of Ho et al. 2020, eq. 5, in bits per dimension (B,), for a prediction with a variance.

    Samples whose step ends at the image itself have the decoder's L_0.
    """
    assert denoised.log_variance is not None
    # Both means contain the same share of x_t, so their difference needs no x_t and loses no digits.
    error = per_sample(posterior.of_x0, x0) * (x0 - denoised.x0)
    divergence = gaussian_kl(error, per_sample(posterior.small, x0), denoised.log_variance)
    decoded = _decoders[decoder](x0, denoised.x0, denoised.log_variance)  # the last step's mean is its x0
    last = per_sample(posterior.last, x0, torch.bool).to(x0.device)
    return _bits(torch.where(last, decoded, divergence))


def gaussian_kl(difference: Tensor, log_variance: Tensor, other_log_variance: Tensor) -> Tensor:
    """Compute the KL divergence of a normal distribution from another, in nats per dimension.

    `difference` is the difference of their means; all arguments broadcast.
    """
    ratio = log_variance - other_log_variance
    return 0.5 * (ratio.exp() - 1 - ratio + difference.square() * (-other_log_variance).exp())


def _bits(nats: Tensor) -> Tensor:
    return nats.flatten(1).mean(1) / math.log(2)


# --- negative log likelihood of x0 given the last step's normal distribution, in nats per dimension -------------------


def _discretised(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Use the probability of the bin of width 2 / 255 around each value, the outer ones open (Ho et al. 2020, eq. 13).

    It is the difference of two tails on the side of the mean where they are small, in logarithms, so that it is
    accurate however far away the mean is.
    """
    deviation = (log_variance / 2).exp()
    lower = torch.where(x0 < -0.999, -math.inf, (x0 - mean - 1 / 255) / deviation)
    upper = torch.where(x0 > 0.999, math.inf, (x0 - mean + 1 / 255) / deviation)
    above = lower + upper > 0
    near = torch.special.log_ndtr(torch.where(above, -lower, upper))
    far = torch.special.log_ndtr(torch.where(above, -upper, lower))
    return -(near + torch.log(-torch.expm1(far - near)))


def _gaussian(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Use the probability density."""
    return 0.5 * (math.log(2 * math.pi) + log_variance + (x0 - mean).square() * (-log_variance).exp())


_decoders: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "discretised": _discretised,
    "gaussian": _gaussian,
}
