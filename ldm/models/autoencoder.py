"""The first stage: a KL-regularised convolutional autoencoder (Rombach et al. 2022, section 3.1 and appendix G).

Parameters are named as in diffusers' `AutoencoderKL`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.config import AutoencoderConfig
from ldm.models.attention import SpatialAttention
from ldm.models.blocks import DownBlock, MidBlock, UpBlock
from ldm.models.layers import BlockOptions, Downsample, Upsample


class Posterior:
    """A diagonal normal distribution over z; latents drawn from it are scaled, (z - shift_factor) * scaling_factor."""

    def __init__(self, moments: Tensor, config: AutoencoderConfig) -> None:
        self.moments = moments  # (B, 2C, h, w): mean and log-variance of z, as the network gave them
        self.config = config
        wide = moments.to(torch.promote_types(moments.dtype, torch.float32))
        self.mean, log_variance = wide.chunk(2, dim=1)
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
        terms = self.mean.square() + self.log_variance.exp() - 1.0 - self.log_variance
        return 0.5 * terms.sum(dim=(1, 2, 3))


def scale(z: Tensor, config: AutoencoderConfig) -> Tensor:
    """Latents of the encoder's z (B, C, h, w); z itself as long as its statistics are not measured."""
    return (z - _per_channel(config.shift_factor, 0.0, z)) * _per_channel(config.scaling_factor, 1.0, z)


def unscale(latents: Tensor, config: AutoencoderConfig) -> Tensor:
    """The inverse of `scale`."""
    return latents / _per_channel(config.scaling_factor, 1.0, latents) + _per_channel(config.shift_factor, 0.0, latents)


def _per_channel(value: float | tuple[float, ...] | None, unmeasured: float, like: Tensor) -> float | Tensor:
    if value is None:
        return unmeasured
    return like.new_tensor(value).view(1, -1, 1, 1) if isinstance(value, tuple) else value


class Encoder(nn.Module):
    """Pictures to the moments of z."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        options = BlockOptions(config.norm_num_groups, eps=1e-6)
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, (before, width) in enumerate(zip(widths[:1] + widths[:-1], widths, strict=True)):
            downsample = Downsample(width, pad_all_around=False) if level < len(widths) - 1 else None
            self.down_blocks.append(
                DownBlock(before, width, config.layers_per_block, options, downsample=downsample),
            )
        self.mid_block = _mid_block(config, options)
        self.conv_norm_out = nn.GroupNorm(options.groups, widths[-1], options.eps)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) to (B, 2C, H / f, W / f)."""
        h = self.conv_in(pictures)
        for block in self.down_blocks:
            h = block(h)
        h = self.mid_block(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


class Decoder(nn.Module):
    """z to pictures."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        options = BlockOptions(config.norm_num_groups, eps=1e-6)
        widths = config.block_out_channels[::-1]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = _mid_block(config, options)
        self.up_blocks = nn.ModuleList()
        no_skips = [0] * (config.layers_per_block + 1)
        for level, (before, width) in enumerate(zip(widths[:1] + widths[:-1], widths, strict=True)):
            upsample = Upsample(width) if level < len(widths) - 1 else None
            self.up_blocks.append(UpBlock(before, width, no_skips, options, upsample=upsample))
        self.conv_norm_out = nn.GroupNorm(options.groups, widths[-1], options.eps)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """z (B, C, h, w) to pictures (B, 3, fh, fw)."""
        h = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            h = block(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


def _mid_block(config: AutoencoderConfig, options: BlockOptions) -> MidBlock:
    channels = config.block_out_channels[-1]
    attention = partial(SpatialAttention, channels, options.groups, options.eps)
    return MidBlock(channels, options, attention if config.mid_block_attention else None)


class Autoencoder(nn.Module):
    """Pictures to latents and back; it owns the statistics that scale its latents to unit variance."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self._start_narrow()

    def _start_narrow(self) -> None:
        """Start with posteriors of standard deviation about exp(-3), whatever the picture.

        With unit variance the noise hides the small first means, and what it hides longest, colour, is learnt late.
        """
        log_variance = slice(self.config.latent_channels, None)
        with torch.no_grad():
            self.quant_conv.bias[log_variance] = -6.0
            self.quant_conv.weight[log_variance] *= 0.1

    def encode(self, pictures: Tensor) -> Posterior:
        """The posterior of pictures (B, 3, H, W) in [-1, 1], sides divisible by the downsampling factor f."""
        h = self.encoder(pictures.to(self.dtype))
        return self.posterior(self.quant_conv(h))  # (B, 2C, H / f, W / f)

    def posterior(self, moments: Tensor) -> Posterior:
        """The posterior with the given moments (B, 2C, h, w), such as were kept from an earlier `encode`."""
        return Posterior(moments, self.config)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), about in [-1, 1], of scaled latents (B, C, H / f, W / f)."""
        z = unscale(latents, self.config).to(self.dtype)
        return self.decoder(self.post_quant_conv(z))

    def forward(self, pictures: Tensor, noise: Tensor) -> tuple[Tensor, Posterior]:
        """Reconstructions of pictures (B, 3, H, W) through posterior samples with the given noise (B, C, h, w)."""
        posterior = self.encode(pictures)
        return self.decode(posterior.sample(noise=noise)), posterior

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Scale latents from now on by the measured mean (C,) and standard deviation (C,) of z.

        With `statistics: channel` every channel gets zero mean and unit variance; with `tensor` all channels share one
        factor, which gives their values taken together unit variance (Rombach et al. 2022, appendix G).
        """
        mean, std = mean.double().cpu(), std.double().cpu()
        if self.config.statistics == "tensor":
            variance = std.square().mean() + mean.var(correction=0)  # within channels and between them
            scaling, shift = (1 / variance.sqrt()).item(), mean.mean().item()
        else:
            scaling, shift = tuple((1 / std).tolist()), tuple(mean.tolist())
        self.config = self.config.model_copy(update={"scaling_factor": scaling, "shift_factor": shift})

    @property
    def last_layer(self) -> Tensor:
        """The weight that sees all gradients last: where the adversarial loss is balanced."""
        return self.decoder.conv_out.weight

    @property
    def dtype(self) -> torch.dtype:
        """The type its weights have, and pictures and latents are converted to."""
        return self.post_quant_conv.weight.dtype
