"""What all kinds of bottlenecks have in common: the networks, and how they are stored in diffusers' layout."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.autoencoder.distribution import LatentDistribution
from ldm.models.autoencoder.networks import Decoder, Encoder
from ldm.storage.fields import Fields, Fixed


class Bottleneck:
    """One kind of bottleneck, between `quant_conv` of the encoder and `post_quant_conv` of the decoder."""

    section: ClassVar[type[AutoencoderConfig]]
    distribution: ClassVar[type[LatentDistribution]] = LatentDistribution
    moments: ClassVar[int] = 1  # outputs of the encoder for each value of z
    has_codebook: ClassVar[bool] = False
    is_pixel_space: ClassVar[bool] = False

    # diffusers' class, if there is one: its fields with their defaults, and fields with the supported values.
    diffusers_class: ClassVar[str | None] = None
    diffusers_defaults: ClassVar[Fields] = {}
    diffusers_fixed: ClassVar[Fixed] = {}
    # Classes of the original code: of a file with the autoencoder alone, with a diffusion model, and other names.
    compvis_classes: ClassVar[tuple[str, ...]] = ()
    compvis_options: ClassVar[dict[str, str]] = {}  # further parameters of these classes -> our options

    @classmethod
    def networks(cls, config: AutoencoderConfig) -> dict[str, nn.Module]:
        """Return the modules of an autoencoder by name."""
        return {
            "encoder": Encoder(config, cls.moments * config.z_width),
            "decoder": Decoder(config),
            "quant_conv": nn.Conv2d(cls.moments * config.z_width, cls.moments * config.latent_channels, 1),
            "post_quant_conv": nn.Conv2d(config.latent_channels, config.z_width, 1),
            "quantize": nn.Identity(),
        }

    @classmethod
    def channels_to_diffusers(cls, config: AutoencoderConfig) -> Fields:
        """Return the fields of `config.json` that differ between diffusers' classes.

        Raises:
            UserError: if the class has no field for an option.
        """
        raise NotImplementedError

    @classmethod
    def channels_from_diffusers(cls, fields: Fields) -> dict[str, Any]:
        """Return our options for these fields."""
        return {}

    @classmethod
    def fold_encoder(cls, tensors: dict[str, Tensor], ratios: Tensor, shifts: Tensor) -> dict[str, Tensor]:
        """Return the weights that encode to z' = (z - shift) * ratio, by channel."""
        raise NotImplementedError
