"""The identity: images are their own latents, and the denoiser works on pixels."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator
from torch import nn

from ldm.models.autoencoder.bottleneck import Bottleneck
from ldm.models.autoencoder.config import AutoencoderConfig

USED = {"kind", "in_channels", "out_channels", "latent_channels", "sample_size"}


class IdentityConfig(AutoencoderConfig):
    """Options of the identity, which has no weights."""

    kind: Literal["identity"] = "identity"

    @model_validator(mode="after")
    def _check_channels(self) -> IdentityConfig:
        if not self.latent_channels == self.in_channels == self.out_channels:
            raise ValueError(
                f"kind identity needs equal in_channels, latent_channels and out_channels, not {self.in_channels}, "
                f"{self.latent_channels} and {self.out_channels}"
            )
        for name, option in type(self).model_fields.items():
            if name not in USED and getattr(self, name) != option.get_default():
                raise ValueError(f"kind identity has no option {name}: remove it")
        return self

    @property
    def downsampling_factor(self) -> int:
        """Pixels per latent position along each side."""
        return 1


class IdentityBottleneck(Bottleneck):
    """No networks: encoding and decoding return what they are given."""

    section = IdentityConfig
    is_pixel_space = True

    @classmethod
    def networks(cls, config: AutoencoderConfig) -> dict[str, nn.Module]:
        """Return no modules."""
        return {}


def identity_config(channels: int, sample_size: int) -> IdentityConfig:
    """Return the configuration of a model on pixels: images of `channels`, `sample_size` pixels along each side."""
    widths: dict[str, Any] = dict.fromkeys(("in_channels", "out_channels", "latent_channels"), channels)
    return IdentityConfig(sample_size=sample_size, **widths)
