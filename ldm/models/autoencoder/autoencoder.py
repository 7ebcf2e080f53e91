"""The autoencoder: images to latents and back (Rombach et al. 2022, section 3.1)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.autoencoder.distribution import LatentDistribution, scale, unscale
from ldm.models.autoencoder.fields import (
    Statistics,
    autoencoder_from_fields,
    autoencoder_to_fields,
    fold_statistics,
    without_quant_convolutions,
)
from ldm.models.autoencoder.networks import Decoder, Encoder
from ldm.models.autoencoder.vq import Quantizer
from ldm.models.precision import supported_dtype
from ldm.storage.fields import load_fields
from ldm.storage.networks import load_network_weights, save_network
from ldm.storage.weights import SHARD_SIZE, build


class Autoencoder(nn.Module):
    """Encode images to latents and decode latents to images.

    The bottleneck of the configuration provides the networks and the distribution of the latents. Latents are scaled to
    unit variance by the statistics in the configuration.
    """

    encoder: Encoder
    decoder: Decoder
    quant_conv: nn.Conv2d
    post_quant_conv: nn.Conv2d
    quantize: Quantizer  # nn.Identity without a codebook

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        for name, network in config.bottleneck.networks(config).items():
            self.add_module(name, network)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, dtype: torch.dtype = torch.float32, statistics: Statistics = "all"
    ) -> Autoencoder:
        """Load a folder in the layout of diffusers' `AutoencoderKL` or `VQModel`, such as `runs/mine/vae`.

        With dtype float16, an autoencoder whose `force_upcast` is set is loaded as float32. `statistics` names the
        fields of latent statistics to use, since diffusers' pipelines ignore some of them.

        Raises:
            UserError: if the folder is incomplete or its configuration has unsupported values.
        """
        folder = Path(path)
        fields = load_fields(folder / "config.json")
        config = autoencoder_from_fields(fields, folder / "config.json", statistics)
        weights = without_quant_convolutions(fields, config) | load_network_weights(folder)
        return build(lambda: cls(config), weights, supported_dtype(config, dtype), folder)

    def save_pretrained(self, path: str | Path, dtype: torch.dtype | None = None, shard_size: int = SHARD_SIZE) -> None:
        """Write a folder in the layout of diffusers, weights as `dtype` if given.

        Statistics are folded into one scaling factor, all that diffusers' pipelines support.

        Raises:
            UserError: if diffusers' class has no field for an option; nothing is written then.
        """
        config, tensors = fold_statistics(self.config, self.state_dict())
        save_network(Path(path), autoencoder_to_fields(config), tensors, dtype, shard_size)

    def encode(self, images: Tensor) -> LatentDistribution:
        """Return the distribution of the latents of images (B, 3, H, W) in [-1, 1].

        H and W must be divisible by the downsampling factor f.
        """
        images = images.to(self.dtype)
        if self.config.is_pixel_space:
            return self.posterior(images)
        return self.posterior(self.quant_conv(self.encoder(images)))  # (B, M * C, H / f, W / f)

    def posterior(self, moments: Tensor) -> LatentDistribution:
        """Return the distribution with the given moments, such as the `moments` of an earlier one.

        They are (B, 2C, h, w), mean and log-variance of z, for kind kl and z itself, (B, C, h, w), for others.
        """
        return self.config.bottleneck.distribution(moments, self.config)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B, C, H / f, W / f) to images (B, 3, H, W), about in [-1, 1]."""
        z = unscale(latents, self.config)
        if self.config.is_pixel_space:
            return z
        return self.decoder(self.post_quant_conv(self.quantize(z).to(self.dtype)))

    def indices(self, latents: Tensor) -> Tensor:
        """Return the indices (B, h, w) of the codebook vectors for latents (B, C, h, w); only with a codebook."""
        return self.quantize.indices(unscale(latents, self.config))

    def lookup(self, indices: Tensor) -> Tensor:
        """Return the latents (B, C, h, w) of codebook indices (B, h, w); only with a codebook."""
        return scale(self.quantize.lookup(indices), self.config)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, LatentDistribution]:
        """Reconstruct images (B, 3, H, W) from posterior samples with the given noise (B, C, h, w)."""
        posterior = self.encode(images)
        return self.decode(posterior.sample(noise=noise)), posterior

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Scale latents by the measured mean (C,) and standard deviation (C,) of z.

        With `statistics: channel` each channel gets zero mean and unit variance; with `tensor` all channels share one
        factor, which gives their values taken together unit variance (Rombach et al. 2022, appendix G).
        """
        mean, std = mean.double().cpu(), std.double().cpu()
        if self.config.statistics == "tensor":
            variance = std.square().mean() + mean.var(correction=0)  # within and between channels
            scaling, shift = (1 / variance.sqrt()).item(), mean.mean().item()
        else:
            scaling, shift = tuple((1 / std).tolist()), tuple(mean.tolist())
        self.config = self.config.model_copy(update={"scaling_factor": scaling, "shift_factor": shift})

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last weight, where the adaptive adversarial weight compares gradients."""
        return self.decoder.conv_out.weight

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, to which images and latents are converted."""
        return next((weight.dtype for weight in self.parameters()), torch.float32)
