"""KL divergence of the posterior from a standard normal (Kingma and Welling 2014)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor

from ldm.config.section import Section
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.autoencoder.distribution import LatentDistribution
from ldm.models.autoencoder.kl import DiagonalGaussian
from ldm.training.losses.term import Losses, LossTerm, Output

if TYPE_CHECKING:
    from ldm.training.stages.autoencoder import Reconstruction


class KLLossConfig(Section):
    """KL divergence of a KL autoencoder's posterior from a standard normal, summed over a latent."""

    weight: float = Field(1e-6, ge=0)


class KL(NamedTuple):
    """The divergence of a batch's posteriors."""

    divergence: Tensor  # (B,) in nats
    kl_channels: Tensor  # mean per value, (C,) in nats, without gradients
    posterior_std: Tensor  # mean by channel, (C,), without gradients


class KLTerm(LossTerm):
    """The divergence, divided by the number of an image's values."""

    section = KLLossConfig

    @classmethod
    def fits(cls, autoencoder: AutoencoderConfig) -> bool:
        """Return whether the posterior is Gaussian, since only then it has a divergence."""
        return issubclass(autoencoder.bottleneck.distribution, DiagonalGaussian)

    @classmethod
    def is_enabled(cls, config: Any) -> bool:
        """Return True, because the divergence is logged even if its weight is 0."""
        return True

    @staticmethod
    def forward(config: Any, network: Reconstruction, posterior: LatentDistribution, latents: Tensor) -> KL:
        """Compute the divergence."""
        gaussian = cast(DiagonalGaussian, posterior)
        with torch.no_grad():
            channels = gaussian.kl_per_value().mean((0, 2, 3))
            std = torch.exp(0.5 * gaussian.log_variance).mean((0, 2, 3))
        return KL(gaussian.kl(), channels, std)

    def __call__(self, images: Tensor, output: Output, losses: Mapping[str, Tensor]) -> tuple[Tensor, Losses]:
        """Return the weighted divergence ()."""
        kl = output.terms["kl"].divergence.mean() / images[0].numel()
        return self.config.weight * kl, {"kl": kl}

    def observe(self, images: Tensor, output: Output) -> dict[str, Tensor]:
        """Return the divergence and the standard deviation by channel."""
        kl: KL = output.terms["kl"]
        return {"kl_channels": kl.kl_channels, "posterior_std": kl.posterior_std}
