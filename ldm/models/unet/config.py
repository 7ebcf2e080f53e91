"""Configuration of the U-Net."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ldm.config.section import Count, Depth, Width, check_divisible
from ldm.models.denoiser import DenoiserConfig

COPIES = 8  # of a feature map that a block holds: concatenated, normalized, activated, convolved


class UNetConfig(DenoiserConfig):
    """The denoising U-Net; tuples have one entry per level, finest first."""

    block_out_channels: tuple[Width, ...] = Field((128, 256, 384), min_length=1)
    layers_per_block: Depth = 2
    attention: Literal["transformer", "plain"] = "transformer"  # plain: self-attention only, without a context
    attention_layers: tuple[Count, ...] = (1, 1, 1)  # attention blocks after each ResNet block of a level
    mid_attention_layers: Count | None = None  # in the mid block; default: as in the last level, at least 1
    num_attention_heads: Width | tuple[Width, ...] = 8
    cross_attention_dim: Width | None = 256  # width of the context; null with plain attention
    use_linear_projection: bool = True
    norm_num_groups: Width = 32
    norm_eps: float = Field(1e-5, gt=0, lt=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    time_scale_shift: bool = False  # the time embedding scales and shifts after a norm instead of being added
    resnet_resampling: bool | tuple[bool, ...] = False  # whether levels resample in a ResNet block
    downsample_padding: Literal[0, 1] = 1  # 0: pad at the right and the bottom only
    flip_sin_to_cos: bool = True  # cosines come first in the time embedding
    freq_shift: float = 0.0  # of the time embedding's frequencies
    # Conditioning that is added to the time embedding:
    num_class_embeds: Width | None = None  # a table of classes; with dropout the last row means "no class"
    class_embed_type: Literal["timestep", "identity", "projection", "simple_projection"] | None = None
    projection_class_embeddings_input_dim: Width | None = None  # input width of the projections
    addition_embed_type: Literal["text_time"] | None = None  # SDXL: pooled text, original size, crop and target size
    addition_time_embed_dim: Width | None = None  # width of the embedding of each of these six numbers

    # The guidance scale as an input of models distilled from guided ones (Meng et al. 2023): width of its embedding.
    time_cond_proj_dim: Width | None = None

    @model_validator(mode="after")
    def _check_levels(self) -> UNetConfig:
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
    def _check_attention(self) -> UNetConfig:
        if self.attention == "plain":
            if self.cross_attention_dim is not None:
                raise ValueError("attention plain has no context: set cross_attention_dim to null")
            if max(*self.attention_layers, self.mid_layers) > 1:
                raise ValueError("with attention plain, attention_layers must be 0 or 1 in each level")
        elif self.cross_attention_dim is None:
            raise ValueError("attention transformer needs cross_attention_dim, the width of the context")
        return self

    @model_validator(mode="after")
    def _check_embeddings(self) -> UNetConfig:
        if self.num_class_embeds is not None and self.class_embed_type is not None:
            raise ValueError("num_class_embeds and class_embed_type exclude each other: set one of them to null")
        projected = self.class_embed_type in ("projection", "simple_projection") or self.addition_embed_type is not None
        if projected != (self.projection_class_embeddings_input_dim is not None):
            raise ValueError(
                "projection_class_embeddings_input_dim is required by class_embed_type projection and "
                "simple_projection and by addition_embed_type text_time, and unused otherwise"
            )
        if (self.addition_embed_type is None) != (self.addition_time_embed_dim is None):
            raise ValueError("addition_embed_type text_time and addition_time_embed_dim require each other")
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
        """Whether each level resamples in a ResNet block instead of a convolution."""
        if isinstance(self.resnet_resampling, tuple):
            return self.resnet_resampling
        return (self.resnet_resampling,) * len(self.block_out_channels)

    @property
    def multiple(self) -> int:
        """The number by which both sides of the latents must be divisible."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @property
    def context_width(self) -> int | None:
        """Width D of the context (B, L, D)."""
        return self.cross_attention_dim

    @property
    def num_classes(self) -> int | None:
        """Rows of the table of classes."""
        return self.num_class_embeds

    @property
    def pooled_width(self) -> int | None:
        """Width P of the pooled text beside six numbers."""
        if self.addition_embed_type is None:
            return None
        return (self.projection_class_embeddings_input_dim or 0) - 6 * (self.addition_time_embed_dim or 0)

    @property
    def embeds_guidance(self) -> bool:
        """Whether the U-Net takes the guidance scale."""
        return self.time_cond_proj_dim is not None

    def added_numbers(self, pooled: int) -> int | None:
        """Count the numbers beside pooled text of a width: six, or five for SDXL's refiner."""
        rest = (self.projection_class_embeddings_input_dim or 0) - pooled
        width = self.addition_time_embed_dim or 1
        return rest // width if rest in (5 * width, 6 * width) else None

    def activations(self, backward: bool = False) -> float:
        """Estimate the values held per position of the latents: skip connections and the widest map, or all maps."""
        maps = [width / 4**level for level, width in enumerate(self.block_out_channels)]
        layers = self.layers_per_block + 1
        if backward:
            return COPIES * 2 * layers * sum(maps)  # on the way down and up
        return layers * sum(maps) + 2 * COPIES * max(maps)  # concatenating skip connections doubles the width
