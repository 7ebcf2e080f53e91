"""Configuration of the U-Net."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ldm.config.section import Count, Depth, Section, Width, check_divisible


class UNetConfig(Section):
    """The denoising U-Net; tuples have one entry a level, finest first."""

    in_channels: Width = 4  # latents, then what is concatenated to them
    out_channels: Width = 4
    sample_size: Width = 16  # side of the latents it was trained on
    block_out_channels: tuple[Width, ...] = Field((128, 256, 384), min_length=1)
    layers_per_block: Depth = 2
    attention: Literal["transformer", "plain"] = "transformer"  # plain: self-attention alone, which sees no context
    attention_layers: tuple[Count, ...] = (
        1,
        1,
        1,
    )  # attention blocks after each ResNet block of a level; 0: none
    mid_attention_layers: Count | None = None  # in the mid block; None: as many as the last level, at least one
    num_attention_heads: Width | tuple[Width, ...] = 8
    cross_attention_dim: Width | None = 256  # width of the context; None, with plain attention: there is none
    use_linear_projection: bool = True
    norm_num_groups: Width = 32
    norm_eps: float = Field(1e-5, gt=0, lt=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    time_scale_shift: bool = False  # the time embedding scales and shifts after a norm, instead of being added
    resnet_resampling: bool | tuple[bool, ...] = False  # levels that halve and double by a ResNet block
    downsample_padding: Literal[0, 1] = 1  # 0: at the right and the bottom only
    flip_sin_to_cos: bool = True  # the time embedding has its cosines first
    freq_shift: float = 0.0  # of the time embedding's frequencies
    # What is added to the time embedding besides:
    num_class_embeds: Width | None = None  # a table of classes; with condition dropout the last stands for none
    class_embed_type: Literal["timestep", "identity", "projection", "simple_projection"] | None = None
    projection_class_embeddings_input_dim: Width | None = None  # width of what the projections take
    addition_embed_type: Literal["text_time"] | None = None  # SDXL: pooled text, original size, crop and target size
    addition_time_embed_dim: Width | None = None  # width of the embedding of each of those six numbers

    @model_validator(mode="after")
    def _levels_agree(self) -> UNetConfig:
        levels = len(self.block_out_channels)
        for name in ("attention_layers", "num_attention_heads", "resnet_resampling"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != levels:
                raise ValueError(f"{name} has {len(value)} entries for {levels} levels")
        attends = [*self.attention_layers[:-1], self.attention_layers[-1] or self.mid_layers]
        for width, heads, layers in zip(self.block_out_channels, self.heads, attends, strict=True):
            check_divisible("block_out_channels", width, "norm_num_groups", self.norm_num_groups)
            if layers:
                check_divisible("block_out_channels", width, "num_attention_heads", heads)
        return self

    @model_validator(mode="after")
    def _attention_fits(self) -> UNetConfig:
        if self.attention == "plain":
            if self.cross_attention_dim is not None:
                raise ValueError("plain attention sees no context: set cross_attention_dim to null")
            if max(*self.attention_layers, self.mid_layers) > 1:
                raise ValueError("plain attention has at most one block a ResNet: attention_layers must be 0 or 1")
        elif self.cross_attention_dim is None:
            raise ValueError("attention transformer needs cross_attention_dim, the width of the context")
        return self

    @model_validator(mode="after")
    def _embeddings_fit(self) -> UNetConfig:
        if self.num_class_embeds is not None and self.class_embed_type is not None:
            raise ValueError("num_class_embeds is a table: class_embed_type must be null")
        projected = self.class_embed_type in ("projection", "simple_projection") or self.addition_embed_type is not None
        if projected != (self.projection_class_embeddings_input_dim is not None):
            raise ValueError(
                "projection_class_embeddings_input_dim belongs to class_embed_type projection and simple_projection "
                "and to addition_embed_type text_time, which need it"
            )
        if (self.addition_embed_type is None) != (self.addition_time_embed_dim is None):
            raise ValueError("addition_embed_type text_time and addition_time_embed_dim belong together")
        return self

    @property
    def heads(self) -> tuple[int, ...]:
        """Number of attention heads of each level."""
        if isinstance(self.num_attention_heads, tuple):
            return self.num_attention_heads
        return (self.num_attention_heads,) * len(self.block_out_channels)

    @property
    def mid_layers(self) -> int:
        """Attention blocks in the mid block."""
        if self.mid_attention_layers is not None:
            return self.mid_attention_layers
        return max(1, self.attention_layers[-1])

    @property
    def resamples(self) -> tuple[bool, ...]:
        """Whether each level halves and doubles by a ResNet block instead of a convolution."""
        if isinstance(self.resnet_resampling, tuple):
            return self.resnet_resampling
        return (self.resnet_resampling,) * len(self.block_out_channels)
