"""The first stage: a convolutional autoencoder with a KL or a VQ bottleneck (Rombach et al. 2022, section 3.1).

Parameters are named as in diffusers' `AutoencoderKL` and `VQModel`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.models.attention import SpatialAttention
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.autoencoder.fields import autoencoder_from_fields, autoencoder_to_fields
from ldm.models.autoencoder.posterior import PointPosterior, Posterior, scale, unscale
from ldm.models.autoencoder.quantizer import Quantizer
from ldm.models.autoencoder.statistics import fold_statistics
from ldm.models.blocks import DownBlock, MakeAttention, MidBlock, UpBlock
from ldm.models.layers import BlockOptions, Downsample, Upsample
from ldm.storage.fields import load_fields
from ldm.storage.networks import load_network_weights, save_network
from ldm.storage.weights import SHARD_SIZE, build

POSTERIORS: dict[str, type[Posterior | PointPosterior]] = {
    "kl": Posterior,
    "vq": PointPosterior,
    "identity": PointPosterior,
}


class Encoder(nn.Module):
    """Images to what `quant_conv` makes the moments of z of."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        options = BlockOptions(config.norm_num_groups, eps=1e-6)
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, (before, width) in enumerate(zip(widths[:1] + widths[:-1], widths, strict=True)):
            downsample = Downsample(width, pad_all_around=False) if level < len(widths) - 1 else None
            attention = _attention(width, options) if level in config.attention_levels else None
            self.down_blocks.append(DownBlock(before, width, config.layers_per_block, options, attention, downsample))
        self.mid_block = _mid_block(config, options)
        self.conv_norm_out = nn.GroupNorm(options.groups, widths[-1], options.eps)
        self.conv_out = nn.Conv2d(widths[-1], config.moments * config.z_width, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to (B, 2Z, H / f, W / f), or (B, Z, H / f, W / f) without a log-variance."""
        h = self.conv_in(images)
        for block in self.down_blocks:
            h = block(h)
        h = self.mid_block(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


class Decoder(nn.Module):
    """What `post_quant_conv` makes of z to images."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        options = BlockOptions(config.norm_num_groups, eps=1e-6)
        widths = config.block_out_channels[::-1]
        self.conv_in = nn.Conv2d(config.z_width, widths[0], 3, padding=1)
        self.mid_block = _mid_block(config, options)
        self.up_blocks = nn.ModuleList()
        no_skips = [0] * (config.layers_per_block + 1)
        for level, (before, width) in enumerate(zip(widths[:1] + widths[:-1], widths, strict=True)):
            upsample = Upsample(width) if level < len(widths) - 1 else None
            attention = _attention(width, options) if len(widths) - 1 - level in config.attention_levels else None
            self.up_blocks.append(UpBlock(before, width, no_skips, options, attention, upsample))
        self.conv_norm_out = nn.GroupNorm(options.groups, widths[-1], options.eps)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """z (B, Z, h, w) to images (B, 3, fh, fw)."""
        h = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            h = block(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


def _mid_block(config: AutoencoderConfig, options: BlockOptions) -> MidBlock:
    channels = config.block_out_channels[-1]
    return MidBlock(channels, options, _attention(channels, options) if config.mid_block_attention else None)


def _attention(channels: int, options: BlockOptions) -> MakeAttention:
    return partial(SpatialAttention, channels, options.groups, options.eps)


class Autoencoder(nn.Module):
    """Images to latents and back; it owns the statistics that scale its latents to unit variance.

    One of kind vq quantises when it decodes, so that a U-Net works on what is not quantised yet; one of kind identity
    has no networks and gives images as they are.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        if config.kind == "identity":
            return
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(config.moments * config.z_width, config.moments * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.z_width, 1)
        if config.codebook_size is None:
            self._start_narrow()
        else:
            self.quantize = Quantizer(config.codebook_size, config.latent_channels)

    @classmethod
    def from_pretrained(cls, path: str | Path, dtype: torch.dtype = torch.float32) -> Autoencoder:
        """Load a folder in the layout of diffusers' `AutoencoderKL` or `VQModel`, such as `runs/mine/vae`.

        With dtype float16, an autoencoder whose `force_upcast` is set is loaded as float32.

        Raises:
            UserError: if the folder is incomplete or its configuration has unsupported values.
        """
        folder = Path(path)
        config = autoencoder_from_fields(load_fields(folder / "config.json"), folder / "config.json")
        if dtype == torch.float16 and config.force_upcast:
            dtype = torch.float32
        return build(lambda: cls(config), load_network_weights(folder), dtype, folder)

    def save_pretrained(self, path: str | Path, dtype: torch.dtype | None = None, shard_size: int = SHARD_SIZE) -> None:
        """Write a folder in the layout of diffusers, weights as `dtype` if given.

        Statistics are folded into one scaling factor, all that diffusers' pipelines support.

        Raises:
            UserError: if diffusers' class has no field for an option; nothing is written then.
        """
        config, tensors = fold_statistics(self.config, self.state_dict())
        save_network(Path(path), autoencoder_to_fields(config), tensors, dtype, shard_size)

    def _start_narrow(self) -> None:
        """Start with posteriors of standard deviation about exp(-3), whatever the image.

        With unit variance the noise hides the small first means, and what it hides longest, colour, is learnt late.
        """
        log_variance = slice(self.config.latent_channels, None)
        with torch.no_grad():
            self.quant_conv.bias[log_variance] = -6.0
            self.quant_conv.weight[log_variance] *= 0.1

    def encode(self, images: Tensor) -> Posterior | PointPosterior:
        """The posterior of images (B, 3, H, W) in [-1, 1], sides divisible by the downsampling factor f."""
        if self.config.kind == "identity":
            return self.posterior(images.to(self.dtype))
        h = self.encoder(images.to(self.dtype))
        return self.posterior(self.quant_conv(h))  # (B, 2C, H / f, W / f), without log-variance (B, C, H / f, W / f)

    def posterior(self, moments: Tensor) -> Posterior | PointPosterior:
        """The posterior with the given moments, such as were kept from an earlier `encode`.

        They are (B, 2C, h, w), mean and log-variance of z, or (B, C, h, w) for kind vq, which has z itself.
        """
        return POSTERIORS[self.config.kind](moments, self.config)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W), about in [-1, 1], of scaled latents (B, C, H / f, W / f)."""
        z = unscale(latents, self.config)
        if self.config.kind == "identity":
            return z
        if self.config.kind == "vq":
            z = self.quantize(z)
        return self.decoder(self.post_quant_conv(z.to(self.dtype)))

    def indices(self, latents: Tensor) -> Tensor:
        """Indices (B, h, w) of the codebook vectors that scaled latents (B, C, h, w) decode as; for kind vq alone."""
        return self.quantize.indices(unscale(latents, self.config))

    def lookup(self, indices: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) of indices (B, h, w) into the codebook; for kind vq alone."""
        return scale(self.quantize.lookup(indices), self.config)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Posterior | PointPosterior]:
        """Reconstructions of images (B, 3, H, W) through posterior samples with the given noise (B, C, h, w)."""
        posterior = self.encode(images)
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
        """The type its weights have, and images and latents are converted to."""
        return next((weight.dtype for weight in self.parameters()), torch.float32)
