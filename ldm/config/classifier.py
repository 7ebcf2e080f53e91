"""The section `classifier`: a classifier of noisy latents, for classifier guidance."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from ldm.config.section import Depth, Section, Width, check_divisible


class ClassifierConfig(Section):
    """The network; tuples have one entry per level, finest first."""

    in_channels: Width = 4  # of the latents
    num_classes: Width = 1000
    sample_size: Width = 16  # side of the latents in training
    block_out_channels: tuple[Width, ...] = Field((128, 256, 256), min_length=1)
    layers_per_block: Depth = 2
    attention_levels: tuple[NonNegativeInt, ...] = (1, 2)  # levels with self-attention after each ResNet block
    num_attention_heads: Width = 4
    norm_num_groups: Width = 32
    norm_eps: float = Field(1e-5, gt=0, lt=1)
    dropout: float = Field(0.0, ge=0, lt=1)

    @field_validator("attention_levels")
    @classmethod
    def _sorted(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(levels)))

    @model_validator(mode="after")
    def _check_levels(self) -> ClassifierConfig:
        levels = len(self.block_out_channels)
        for level in self.attention_levels:
            if not 0 <= level < levels:
                raise ValueError(f"attention_levels has level {level}, but levels are 0 to {levels - 1}")
        for level, width in enumerate(self.block_out_channels):
            check_divisible("block_out_channels", width, "norm_num_groups", self.norm_num_groups)
            if level in (*self.attention_levels, levels - 1):  # the last level is pooled by attention
                check_divisible("block_out_channels", width, "num_attention_heads", self.num_attention_heads)
        return self
