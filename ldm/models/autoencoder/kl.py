"""The KL bottleneck: z has a diagonal Gaussian distribution (Kingma and Welling 2014)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.models.autoencoder.bottleneck import Bottleneck
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.autoencoder.distribution import LatentDistribution, scale
from ldm.models.autoencoder.fields import SHARED_DEFAULTS
from ldm.models.precision import at_least_float32
from ldm.storage.fields import Fields, Fixed


class DiagonalGaussian(LatentDistribution):
    """A diagonal Gaussian distribution of z."""

    def __init__(self, moments: Tensor, config: AutoencoderConfig) -> None:
        self.moments = moments  # (B, 2C, h, w): mean and log-variance of z, as returned by the encoder
        self.config = config
        self.mean, log_variance = at_least_float32(moments).chunk(2, dim=1)
        self.log_variance = log_variance.clamp(-30.0, 20.0)

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """Return latents (B, C, h, w) for standard normal noise, which is sampled from `generator` if not given."""
        if noise is None:
            device = generator.device if generator is not None else self.mean.device
            noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        z = self.mean + torch.exp(0.5 * self.log_variance) * noise.to(self.mean.device)
        return scale(z, self.config)

    def kl(self) -> Tensor:
        """Return the KL divergence from a standard normal, (B,) in nats (Kingma and Welling 2014, appendix B)."""
        return self.kl_per_value().sum(dim=(1, 2, 3))

    def kl_per_value(self) -> Tensor:
        """Return the KL divergence of each value of z, (B, C, h, w) in nats."""
        return 0.5 * (self.mean.square() + self.variance - 1.0 - self.log_variance)

    @property
    def variance(self) -> Tensor:
        """Variance of z, (B, C, h, w)."""
        return self.log_variance.exp()


class KLBottleneck(Bottleneck):
    """A Gaussian posterior, regularized by its KL divergence from a standard normal; diffusers' `AutoencoderKL`."""

    section = AutoencoderConfig
    distribution = DiagonalGaussian
    moments = 2  # mean and log-variance
    diffusers_class = "AutoencoderKL"
    diffusers_defaults = SHARED_DEFAULTS | {
        "latent_channels": 4,
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
        "force_upcast": True,
    }
    diffusers_fixed: ClassVar[Fixed] = {
        "act_fn": ("silu", "swish"),
        "use_quant_conv": (True, False),
        "use_post_quant_conv": (True, False),
    }
    compvis_classes = ("AutoencoderKL", "AutoencoderKL", "AutoencoderKLInferenceWrapper")

    @classmethod
    def networks(cls, config: AutoencoderConfig) -> dict[str, nn.Module]:
        """Return the modules, initialized to posteriors of standard deviation about exp(-3) for every image.

        With unit variance the noise hides the small initial means, and colour is learned late.
        """
        networks = super().networks(config)
        quant_conv, log_variance = networks["quant_conv"], slice(config.latent_channels, None)
        assert isinstance(quant_conv, nn.Conv2d)
        assert quant_conv.bias is not None
        with torch.no_grad():
            quant_conv.bias[log_variance] = -6.0
            quant_conv.weight[log_variance] *= 0.1
        return networks

    @classmethod
    def channels_to_diffusers(cls, config: AutoencoderConfig) -> Fields:
        """Return the fields of the latents' width."""
        if config.z_width != config.latent_channels:
            raise UserError(
                f"autoencoder.z_channels is {config.z_width} but latent_channels is {config.latent_channels}: "
                "diffusers' AutoencoderKL has one field for both, so this autoencoder cannot be saved"
            )
        return {"latent_channels": config.latent_channels}

    @classmethod
    def fold_encoder(cls, tensors: dict[str, Tensor], ratios: Tensor, shifts: Tensor) -> dict[str, Tensor]:
        """Scale means like z; log-variance' = log-variance + 2 log ratio."""
        mean, log_variance = tensors["quant_conv.bias"].chunk(2)
        gains = torch.cat([ratios, ratios.new_ones(len(ratios))])[:, None, None, None]
        return {
            "quant_conv.weight": tensors["quant_conv.weight"] * gains,
            "quant_conv.bias": torch.cat([(mean - shifts) * ratios, log_variance + 2 * ratios.log()]),
        }
