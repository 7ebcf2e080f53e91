"""What an encoder says about the latents of an image, and the scaling that gives latents unit variance."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.precision import at_least_float32


class Posterior:
    """A diagonal normal distribution over z; latents drawn from it are scaled, (z - shift_factor) * scaling_factor."""

    def __init__(self, moments: Tensor, config: AutoencoderConfig) -> None:
        self.moments = moments  # (B, 2C, h, w): mean and log-variance of z, as the network gave them
        self.config = config
        self.mean, log_variance = at_least_float32(moments).chunk(2, dim=1)
        self.log_variance = log_variance.clamp(-30.0, 20.0)

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """Latents (B, C, h, w) with the given standard normal noise, or noise drawn from the generator."""
        if noise is None:
            device = generator.device if generator is not None else self.mean.device
            noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        z = self.mean + torch.exp(0.5 * self.log_variance) * noise.to(self.mean.device)
        return scale(z, self.config)

    def mode(self) -> Tensor:
        """The likeliest latents (B, C, h, w)."""
        return scale(self.mean, self.config)

    def kl(self) -> Tensor:
        """Kullback-Leibler divergence from a unit normal, (B,) in nats (Kingma and Welling 2014, appendix B)."""
        return self.kl_of_values().sum(dim=(1, 2, 3))

    def kl_of_values(self) -> Tensor:
        """The same for each value, (B, C, h, w) in nats: a diagonal distribution's are independent and add up."""
        return 0.5 * (self.mean.square() + self.variance - 1.0 - self.log_variance)

    @property
    def variance(self) -> Tensor:
        """Of z, (B, C, h, w)."""
        return self.log_variance.exp()


class PointPosterior:
    """One z and no other, such as a VQ encoder gives before quantisation; its samples are all its mode."""

    def __init__(self, moments: Tensor, config: AutoencoderConfig) -> None:
        self.moments = moments  # (B, C, h, w): z, as the network gave it
        self.config = config
        self.mean = at_least_float32(moments)

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """Latents (B, C, h, w), whatever the generator or the noise."""
        return self.mode()

    def mode(self) -> Tensor:
        """Latents (B, C, h, w)."""
        return scale(self.mean, self.config)

    @property
    def variance(self) -> Tensor:
        """Of z, (B, C, h, w): none."""
        return torch.zeros_like(self.mean)


def scale(z: Tensor, config: AutoencoderConfig) -> Tensor:
    """Latents of the encoder's z (B, C, h, w); z itself as long as its statistics are not measured."""
    return (z - _per_channel(config.shift_factor, 0.0, z)) * _per_channel(config.scaling_factor, 1.0, z)


def unscale(latents: Tensor, config: AutoencoderConfig) -> Tensor:
    """The inverse of `scale`."""
    return latents / _per_channel(config.scaling_factor, 1.0, latents) + _per_channel(config.shift_factor, 0.0, latents)


def _per_channel(value: float | tuple[float, ...] | None, unmeasured: float, like: Tensor) -> float | Tensor:
    if value is None:
        return unmeasured
    if not isinstance(value, tuple):
        return value
    row = torch.tensor(value, dtype=like.dtype).to(like.device, non_blocking=True)  # few numbers need no pinned memory
    return row.view(1, -1, 1, 1)
