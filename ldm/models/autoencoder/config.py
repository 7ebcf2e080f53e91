"""Configuration of the autoencoder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, ValidationInfo, field_validator, model_validator

from ldm.config.section import Depth, Section, Width, check_divisible


class AutoencoderConfig(Section):
    """The first stage; every level but the last halves the image, so f = 2 ** (levels - 1).

    Of kind identity, which has no weights, images are their own latents: the U-Net works on pixels.
    """

    kind: Literal["kl", "vq", "identity"] = "kl"
    in_channels: Width = 3
    out_channels: Width = 3
    latent_channels: Width = 4  # what the U-Net sees
    z_channels: Width | None = None  # of the encoder's output and the decoder's input; None: latent_channels
    codebook_size: Width | None = None  # vq: number of latent vectors
    block_out_channels: tuple[Width, ...] = Field((128, 256, 512, 512), min_length=1)
    layers_per_block: Depth = 2
    attention_levels: tuple[int, ...] = ()  # levels, 0 the finest, with attention after each ResNet block
    mid_block_attention: bool = True
    norm_num_groups: Width = 32
    force_upcast: bool = True  # to float32 where float16 is asked for, in which large activations overflow
    sample_size: Width = 64  # side of the images it was trained on, pixels
    # Latent statistics: latents = (z - shift_factor) * scaling_factor. None: not measured yet.
    scaling_factor: PositiveFloat | tuple[PositiveFloat, ...] | None = None
    shift_factor: float | tuple[float, ...] | None = None
    statistics: Literal["tensor", "channel"] = "tensor"  # what training measures at its end

    @field_validator("z_channels")
    @classmethod
    def _own_width(cls, z_channels: int | None, info: ValidationInfo) -> int | None:
        """One configuration, one way to write it."""
        return None if z_channels == info.data.get("latent_channels") else z_channels

    @field_validator("attention_levels")
    @classmethod
    def _in_order(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(levels)))

    @model_validator(mode="after")
    def _widths_divide(self) -> AutoencoderConfig:
        for width in self.block_out_channels:
            check_divisible("block_out_channels", width, "norm_num_groups", self.norm_num_groups)
        levels = len(self.block_out_channels)
        for level in self.attention_levels:
            if not 0 <= level < levels:
                raise ValueError(f"attention_levels has level {level}; there are levels 0 to {levels - 1}")
        return self

    @model_validator(mode="after")
    def _codebook_fits(self) -> AutoencoderConfig:
        if self.kind == "vq" and self.codebook_size is None:
            raise ValueError("kind vq needs codebook_size, the number of latent vectors")
        if self.kind != "vq" and self.codebook_size is not None:
            raise ValueError(f"codebook_size means something for kind vq alone, not for {self.kind}")
        if self.kind == "vq" and (self.statistics == "channel" or isinstance(self.scaling_factor, tuple)):
            raise ValueError(
                "kind vq needs statistics tensor and one scaling_factor: one a channel would change which latent "
                "vector is nearest, and VQModel has no place for it"
            )
        return self

    @model_validator(mode="after")
    def _identity_has_no_options(self) -> AutoencoderConfig:
        if self.kind != "identity":
            return self
        if not self.latent_channels == self.in_channels == self.out_channels:
            raise ValueError("kind identity: latent_channels must be in_channels and out_channels, the images' own")
        own = {"kind", "in_channels", "out_channels", "latent_channels", "sample_size"}
        for name, option in type(self).model_fields.items():
            if name not in own and getattr(self, name) != option.get_default():
                raise ValueError(f"{name} means nothing for kind identity, whose latents are the images")
        return self

    @property
    def downsampling_factor(self) -> int:
        """How many pixels one latent position stands for, along each side."""
        if self.kind == "identity":
            return 1
        return int(2 ** (len(self.block_out_channels) - 1))

    @property
    def z_width(self) -> int:
        """Channels of the encoder's output and the decoder's input."""
        return self.latent_channels if self.z_channels is None else self.z_channels

    @property
    def moments(self) -> int:
        """What the encoder tells of every value of z: mean and log-variance, or the value alone."""
        return 2 if self.kind == "kl" else 1
