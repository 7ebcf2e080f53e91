"""The denoising U-Net, with cross-attention to a context (Rombach et al. 2022, section 3.3 and appendix E.2) or plain.

Parameters are named as in diffusers' `UNet2DConditionModel` and, with plain attention, `UNet2DModel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.models.attention import KeysValues, SpatialAttention, SpatialTransformer, TransformerBlock
from ldm.models.blocks import DownBlock, MakeAttention, MidBlock, UpBlock
from ldm.models.denoiser import Added, DenoiserNetwork
from ldm.models.embeddings import TimestepEmbedding, sinusoids
from ldm.models.layers import BlockOptions, Downsample, DownsampleResBlock, ResNetBlock, Upsample, UpsampleResBlock
from ldm.models.unet.config import UNetConfig
from ldm.models.unet.fields import CLASSES, KINDS, unet_from_fields, unet_to_fields
from ldm.storage.fields import Fields


class UNet(DenoiserNetwork):
    """A U-Net of ResNet blocks; levels with `attention_layers` have attention after each."""

    section = UNetConfig
    library = "diffusers"
    config: UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        widths = config.block_out_channels
        channels = 4 * widths[0]  # of the time embedding
        self.options = BlockOptions(
            config.norm_num_groups, config.norm_eps, channels, config.dropout, config.time_scale_shift
        )
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], channels, config.time_cond_proj_dim)
        self.class_embedding = self._class_embedding(channels)
        self.add_embedding = None
        if config.addition_embed_type is not None:
            self.add_embedding = TimestepEmbedding(config.projection_class_embeddings_input_dim or 0, channels)
        self.down_blocks = nn.ModuleList(self._down_block(level) for level in range(len(widths)))
        self.mid_block = MidBlock(widths[-1], self.options, self._attention(-1, config.mid_layers))
        skips = self._skip_channels()
        self.up_blocks = nn.ModuleList(self._up_block(level, skips) for level in reversed(range(len(widths))))
        self.conv_norm_out = nn.GroupNorm(self.options.groups, widths[0], self.options.eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)
        self.shift_channels = [block.shift_channels for block in self._resnets]
        self._initialize()

    def embed_time(
        self,
        t: Tensor,
        classes: Tensor | None = None,
        added: Added | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Compute what all ResNet blocks add at times t (B,), concatenated in running order: (B, sum of their widths).

        Args:
            classes: integers (B,), or vectors (B, D) for `class_embed_type` identity and both projections.
            added: pooled text and sizes, for `addition_embed_type` text_time.
            guidance: guidance scales (B,), with `time_cond_proj_dim`.

        One time is broadcast to many classes, and one class to many times.

        Raises:
            ValueError: if conditioning is missing, or given to a U-Net that does not take it.
        """
        config = self.config
        waves = partial(sinusoids, cosines_first=config.flip_sin_to_cos, freq_shift=config.freq_shift)
        _check("guidance scale", guidance, config.embeds_guidance)
        # Kingma et al. 2021 embed logarithms of the SNR in this way, Luo et al. 2023 scale - 1
        scales = (
            None if guidance is None else sinusoids(1000 * (guidance - 1), config.time_cond_proj_dim or 0, False, 1)
        )
        embedding = self.time_embedding(waves(t, config.block_out_channels[0]), scales)  # (B, 4 C0)
        _check("classes", classes, self.class_embedding is not None)
        _check("pooled text and sizes", added, self.add_embedding is not None)
        if self.class_embedding is not None and classes is not None:
            if config.class_embed_type == "timestep":
                classes = waves(classes, config.block_out_channels[0])
            classes = classes if config.num_class_embeds is not None else classes.to(self.dtype)
            embedding = embedding + self.class_embedding(classes)
        if self.add_embedding is not None and added is not None:
            sizes = waves(added.sizes.flatten(), config.addition_time_embed_dim or 0)  # (N B, D)
            vectors = torch.cat([added.text, sizes.reshape(len(added.sizes), -1)], dim=1)
            embedding = embedding + self.add_embedding(vectors)
        embedding = F.silu(embedding)
        return torch.cat([block.time_emb_proj(embedding) for block in self._resnets], dim=1)

    def project_context(self, context: Tensor | None = None) -> list[KeysValues]:
        """Compute keys and values of a context (B, L, D) for every cross-attention, in running order.

        Raises:
            ValueError: if the context is missing, or given to a U-Net with plain attention.
        """
        _check("context", context, self.config.cross_attention_dim is not None)
        if context is None:
            return []
        context = context.to(self.dtype)
        return [module.attn2.project(context) for module in self.modules() if isinstance(module, TransformerBlock)]

    def denoise(
        self,
        latents: Tensor,
        embedding: Tensor,
        context: list[KeysValues],
        residuals: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Predict the output (B, C', h, w) for noisy latents (B, C, h, w).

        Args:
            embedding: the result of `embed_time`, (B or 1, E).
            context: the result of `project_context`.
            residuals: tensors of a ControlNet (Zhang et al. 2023), added to each skip connection in running order and,
                the last, to the output of the mid block.
        """
        h = self.conv_in(latents.to(self.dtype))
        shifts, contexts = iter(embedding.split(self.shift_channels, dim=1)), iter(context)
        skips = [h]  # passed by keyword, since DeepSpeed copies lists that are positional arguments
        for down_block in self.down_blocks:
            h = down_block(h, shifts, contexts, skips=skips)
        h = self.mid_block(h, shifts, contexts)
        if residuals is not None:
            skips = [skip + residual for skip, residual in zip(skips, residuals[:-1], strict=True)]
            h = h + residuals[-1]
        for up_block in self.up_blocks:
            h = up_block(h, shifts, contexts, skips=skips)
        return self.conv_out(F.silu(self.conv_norm_out(h)))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, to which latents and contexts are converted."""
        return self.conv_in.weight.dtype

    def example_inputs(self, side: int, tokens: int) -> dict[str, Any]:
        """Return empty arguments of `forward`: latents of `side` x `side`, a context of `tokens`, a batch of one."""
        inputs, config = super().example_inputs(side, tokens), self.config
        if config.class_embed_type == "timestep":
            inputs["classes"] = torch.empty(1)
        elif config.class_embed_type is not None:
            width = config.projection_class_embeddings_input_dim or 4 * config.block_out_channels[0]
            inputs["classes"] = torch.empty(1, width)
        return inputs

    @classmethod
    def class_names(cls) -> tuple[str, ...]:
        """Return names of diffusers' classes."""
        return tuple(CLASSES)

    @classmethod
    def class_name(cls, config: UNetConfig) -> str:
        """Name of diffusers' class with the kind of attention."""
        return KINDS[config.attention].NAME

    @classmethod
    def to_fields(cls, config: UNetConfig) -> Fields:
        """Convert the section to the fields of diffusers' class."""
        return unet_to_fields(config)

    @classmethod
    def from_fields(cls, fields: Fields, where: Path) -> UNetConfig:
        """Convert the fields of diffusers' class to the section."""
        return unet_from_fields(fields, where)

    @property
    def _resnets(self) -> list[ResNetBlock]:
        """In running order, since blocks are registered in that order."""
        return [module for module in self.modules() if isinstance(module, ResNetBlock)]

    def _skip_channels(self) -> list[int]:
        """Return widths of the skip connections in running order: after `conv_in`, each layer, each downsampling."""
        widths, layers = self.config.block_out_channels, self.config.layers_per_block
        halved = [True] * (len(widths) - 1) + [False]
        made = [[width] * (layers + half) for width, half in zip(widths, halved, strict=True)]
        return [widths[0], *chain.from_iterable(made)]

    def _class_embedding(self, channels: int) -> nn.Module | None:
        config = self.config
        if config.num_class_embeds is not None:
            return nn.Embedding(config.num_class_embeds, channels)
        width = config.projection_class_embeddings_input_dim or 0
        match config.class_embed_type:
            case "timestep":
                return TimestepEmbedding(config.block_out_channels[0], channels)
            case "projection":
                return TimestepEmbedding(width, channels)
            case "simple_projection":
                return nn.Linear(width, channels)
            case "identity":
                return nn.Identity()
        return None

    def _down_block(self, level: int) -> DownBlock:
        config, widths = self.config, self.config.block_out_channels
        width = widths[level]
        downsample: Downsample | DownsampleResBlock | None = None
        if level < len(widths) - 1:
            if config.resamples[level]:
                downsample = DownsampleResBlock(width, width, self.options)
            else:
                downsample = Downsample(width, pad_all_around=config.downsample_padding == 1)
        return DownBlock(
            widths[max(level - 1, 0)],
            width,
            config.layers_per_block,
            self.options,
            self._attention(level, config.attention_layers[level]),
            downsample,
        )

    def _up_block(self, level: int, skips: list[int]) -> UpBlock:
        config, widths = self.config, self.config.block_out_channels
        width = widths[level]
        upsample: Upsample | UpsampleResBlock | None = None
        if level > 0:
            upsample = UpsampleResBlock(width, width, self.options) if config.resamples[level] else Upsample(width)
        return UpBlock(
            widths[min(level + 1, len(widths) - 1)],
            width,
            [skips.pop() for _ in range(config.layers_per_block + 1)],
            self.options,
            self._attention(level, config.attention_layers[level]),
            upsample,
        )

    def _attention(self, level: int, layers: int) -> MakeAttention | None:
        if layers == 0:
            return None
        config = self.config
        width, heads, groups = config.block_out_channels[level], config.heads[level], config.norm_num_groups
        if config.attention == "plain":
            return partial(SpatialAttention, width, groups, config.norm_eps, heads)
        context_channels = config.cross_attention_dim or 0
        return partial(SpatialTransformer, width, heads, context_channels, layers, groups, config.use_linear_projection)

    def _initialize(self) -> None:
        """Initialize every residual branch and the output to zero (Ho et al. 2020; Goyal et al. 2017, 5.1)."""
        last_layers: list[nn.Module] = [block.conv2 for block in self._resnets]
        last_layers += [module.proj_out for module in self.modules() if isinstance(module, SpatialTransformer)]
        last_layers += [module.to_out for module in self.modules() if isinstance(module, SpatialAttention)]
        for layer in [*last_layers, self.conv_out]:
            for weight in layer.parameters():
                nn.init.zeros_(weight)


def _check(name: str, given: object, expected: bool) -> None:
    if (given is not None) != expected:
        raise ValueError(f"this U-Net {'needs' if expected else 'takes no'} {name}")
