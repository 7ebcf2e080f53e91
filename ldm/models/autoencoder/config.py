"""Configuration of the autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ldm.config.section import ByKind, Depth, Section, Width, check_divisible
from ldm.registry import BOTTLENECKS

if TYPE_CHECKING:
    from ldm.models.autoencoder.bottleneck import Bottleneck


class AutoencoderConfig(Section):
    """The options of all autoencoders.

    Every level but the last halves the image, so the downsampling factor is 2 ** (levels - 1).
    """

    kind: str = "kl"  # of the bottleneck
    in_channels: Width = 3
    out_channels: Width = 3
    latent_channels: Width = 4  # as the denoiser sees them
    z_channels: Width | None = None  # of the encoder's output and the decoder's input; None: latent_channels
    block_out_channels: tuple[Width, ...] = Field((128, 256, 512, 512), min_length=1)
    layers_per_block: Depth = 2
    attention_levels: tuple[NonNegativeInt, ...] = ()  # levels with attention after each ResNet block; 0 is the finest
    mid_block_attention: bool = True
    norm_num_groups: Width = 32
    force_upcast: bool = True  # compute in float32 when float16 is requested: large activations overflow
    sample_size: Width = 64  # side of the training images, pixels
    # Latent statistics: latents = (z - shift_factor) * scaling_factor. None: not measured yet.
    scaling_factor: PositiveFloat | tuple[PositiveFloat, ...] | None = None
    shift_factor: float | tuple[float, ...] | None = None
    statistics: Literal["tensor", "channel"] = "tensor"  # measured at the end of training

    @field_validator("z_channels")
    @classmethod
    def _normalize_z_channels(cls, z_channels: int | None, info: ValidationInfo) -> int | None:
        """Write equal widths in one way, so that equal configurations compare equal."""
        return None if z_channels == info.data.get("latent_channels") else z_channels

    @field_validator("attention_levels")
    @classmethod
    def _sort_levels(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(levels)))

    @model_validator(mode="after")
    def _check(self) -> AutoencoderConfig:
        if not isinstance(self, section := self.bottleneck.section):
            raise ValueError(f"kind {self.kind} needs the section {section.__name__}, this is {type(self).__name__}")
        for width in self.block_out_channels:
            check_divisible("block_out_channels", width, "norm_num_groups", self.norm_num_groups)
        levels = len(self.block_out_channels)
        for level in self.attention_levels:
            if not 0 <= level < levels:
                raise ValueError(f"attention_levels has level {level}, but there are levels 0 to {levels - 1}")
        return self

    @property
    def bottleneck(self) -> type[Bottleneck]:
        """The component that `kind` names."""
        return BOTTLENECKS[self.kind]

    @property
    def is_pixel_space(self) -> bool:
        """Whether images are their own latents, so that the denoiser works on pixels."""
        return self.bottleneck.is_pixel_space

    @property
    def downsampling_factor(self) -> int:
        """Pixels per latent position along each side."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @property
    def z_width(self) -> int:
        """Channels of the encoder's output and the decoder's input."""
        return self.latent_channels if self.z_channels is None else self.z_channels


AnyAutoencoderConfig = Annotated[SerializeAsAny[AutoencoderConfig], ByKind(BOTTLENECKS, "kl")]
