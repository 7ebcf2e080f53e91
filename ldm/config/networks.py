"""The networks: autoencoder, text encoder, U-Net."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from ldm.config.section import Section


class AutoencoderConfig(Section):
    """The first stage; every level but the last halves the picture, so f = 2 ** (levels - 1)."""

    kind: Literal["kl"] = "kl"
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    mid_block_attention: bool = True
    sample_size: int = 64  # side of the pictures it was trained on, pixels
    # Latent statistics: latents = (z - shift_factor) * scaling_factor. None: not measured yet.
    scaling_factor: float | tuple[float, ...] | None = None
    shift_factor: float | tuple[float, ...] | None = None
    statistics: Literal["tensor", "channel"] = "tensor"  # what training measures at its end

    @model_validator(mode="after")
    def _widths_divide(self) -> AutoencoderConfig:
        for width in self.block_out_channels:
            _check_divisible("block_out_channels", width, "norm_num_groups", self.norm_num_groups)
        return self

    @property
    def downsampling_factor(self) -> int:
        """How many pixels one latent position stands for, along each side."""
        return int(2 ** (len(self.block_out_channels) - 1))


class TextConfig(Section):
    """The text encoder: a WordPiece vocabulary made from the captions and a BERT trained together with the U-Net."""

    kind: Literal["bert"] = "bert"
    vocab_size: int = 2048  # upper bound; the tokenizer may find fewer pieces in the captions
    max_length: int = 32  # tokens, [CLS] and [SEP] included
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    use_attention_mask: bool = True

    @model_validator(mode="after")
    def _width_divides(self) -> TextConfig:
        _check_divisible("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        return self


class UNetConfig(Section):
    """The denoising U-Net; tuples have one entry a level, finest first."""

    in_channels: int = 4
    out_channels: int = 4
    sample_size: int = 16  # side of the latents it was trained on
    block_out_channels: tuple[int, ...] = (128, 256, 384)
    layers_per_block: int = 2
    transformer_layers: tuple[int, ...] = (1, 1, 1)  # transformer blocks after each ResNet of a level; 0: none
    num_attention_heads: int | tuple[int, ...] = 8
    cross_attention_dim: int = 256
    use_linear_projection: bool = True
    norm_num_groups: int = 32
    dropout: float = 0.0

    @model_validator(mode="after")
    def _levels_agree(self) -> UNetConfig:
        levels = len(self.block_out_channels)
        if len(self.transformer_layers) != levels:
            raise ValueError(f"transformer_layers has {len(self.transformer_layers)} entries for {levels} levels")
        if isinstance(self.num_attention_heads, tuple) and len(self.num_attention_heads) != levels:
            raise ValueError(f"num_attention_heads has {len(self.num_attention_heads)} entries for {levels} levels")
        attends = [*self.transformer_layers[:-1], True]  # the mid block below the last level always does
        for width, heads, layers in zip(self.block_out_channels, self.heads, attends, strict=True):
            _check_divisible("block_out_channels", width, "norm_num_groups", self.norm_num_groups)
            if layers:
                _check_divisible("block_out_channels", width, "num_attention_heads", heads)
        return self

    @property
    def heads(self) -> tuple[int, ...]:
        """Number of attention heads of each level."""
        if isinstance(self.num_attention_heads, tuple):
            return self.num_attention_heads
        return (self.num_attention_heads,) * len(self.block_out_channels)


def _check_divisible(name: str, value: int, by_name: str, by: int) -> None:
    if by < 1 or value < 1 or value % by:
        raise ValueError(f"{name} {value} is not divisible by {by_name} {by}")
