"""The denoising U-Net, with cross-attention to a context (Rombach et al. 2022, section 3.3 and appendix E.2) or plain.

Parameters are named as in diffusers' `UNet2DConditionModel` and, with plain attention, `UNet2DModel`.
"""

from __future__ import annotations

from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.models.attention import Attention, KeysValues, SpatialAttention, SpatialTransformer, TransformerBlock
from ldm.models.blocks import DownBlock, MakeAttention, MidBlock, UpBlock
from ldm.models.embeddings import Added as Added
from ldm.models.embeddings import TimestepEmbedding, class_embedding, sinusoids
from ldm.models.layers import BlockOptions, Downsample, DownsampleResBlock, ResNetBlock, Upsample, UpsampleResBlock
from ldm.models.unet.config import UNetConfig


class UNet(nn.Module):
    """Regresses the prediction target from noisy latents, their time step and, where it knows them, a context or more.

    Levels whose `attention_layers` is 0 have ResNet blocks alone.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        channels = 4 * widths[0]  # of the time embedding
        self.options = BlockOptions(
            config.norm_num_groups, config.norm_eps, channels, config.dropout, config.time_scale_shift
        )
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], channels)
        self.class_embedding = class_embedding(config, channels)
        self.add_embedding = (
            TimestepEmbedding(config.projection_class_embeddings_input_dim or 0, channels)
            if config.addition_embed_type is not None
            else None
        )
        self.down_blocks = nn.ModuleList(self._down_block(level) for level in range(len(widths)))
        self.mid_block = MidBlock(widths[-1], self.options, self._attention(-1, config.mid_layers))
        skips = self.skip_channels
        self.up_blocks = nn.ModuleList(self._up_block(level, skips) for level in reversed(range(len(widths))))
        self.conv_norm_out = nn.GroupNorm(self.options.groups, widths[0], self.options.eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)
        self.shift_channels = [block.shift_channels for block in self._resnets]
        self._start_at_zero()

    @property
    def skip_channels(self) -> list[int]:
        """Widths of the skips in the order in which they are made: after `conv_in`, each layer, each halving."""
        widths, layers = self.config.block_out_channels, self.config.layers_per_block
        halved = [True] * (len(widths) - 1) + [False]
        made = [[width] * (layers + half) for width, half in zip(widths, halved, strict=True)]
        return [widths[0], *chain.from_iterable(made)]

    def forward(
        self,
        latents: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        classes: Tensor | None = None,
        added: Added | None = None,
    ) -> Tensor:
        """Output (B, C', h, w) for noisy latents (B, C, h, w), time steps t (B,) and a context (B, L, D).

        `classes` and `added` as in `embed_time`.
        """
        return self.denoise(latents, self.embed_time(t, classes, added), self.project_context(context))

    def embed_time(self, t: Tensor, classes: Tensor | None = None, added: Added | None = None) -> Tensor:
        """What every ResNet block adds at time steps t (B,), side by side: (B, sum of their widths).

        `classes` are integers (B,) or, for `class_embed_type` identity and both projections, vectors (B, D). One time
        step serves many classes, and one class many time steps. ValueError if what is given is not what is asked for.
        """
        embedding = self.time_embedding(self._sinusoids(t, self.config.block_out_channels[0]))  # (B, 4 C0)
        for given, layer, name in (
            (classes, self.class_embedding, "classes"),
            (added, self.add_embedding, "added text and sizes"),
        ):
            if (given is None) != (layer is None):
                raise ValueError(f"this U-Net {'needs' if given is None else 'knows no'} {name}")
        if classes is not None:
            embedding = embedding + self._embed_classes(classes)
        if added is not None:
            embedding = embedding + self._embed_added(added)
        embedding = F.silu(embedding)
        return torch.cat([block.time_emb_proj(embedding) for block in self._resnets], dim=1)

    def project_context(self, context: Tensor | None = None) -> list[KeysValues]:
        """Keys and values of a context (B, L, D) for every cross-attention, in the order in which they run.

        Plain attention has none. ValueError if what is given is not what is asked for.
        """
        if (context is None) != (self.config.cross_attention_dim is None):
            raise ValueError(f"this U-Net {'needs a' if context is None else 'knows no'} context")
        if context is None:
            return []
        context = context.to(self.dtype)
        return [attention.project(context) for attention in self._cross_attentions]

    def denoise(self, latents: Tensor, embedding: Tensor, projected: list[KeysValues]) -> Tensor:
        """`forward` from what stays the same while sampling: `embed_time` (B or 1, E) and `project_context`."""
        h = self.conv_in(latents.to(self.dtype))
        shifts, contexts = iter(embedding.split(self.shift_channels, dim=1)), iter(projected)
        skips = [h]  # passed by keyword, since DeepSpeed copies lists that are positional arguments
        for down_block in self.down_blocks:
            h = down_block(h, shifts, contexts, skips=skips)
        h = self.mid_block(h, shifts, contexts)
        for up_block in self.up_blocks:
            h = up_block(h, shifts, contexts, skips=skips)
        return self.conv_out(F.silu(self.conv_norm_out(h)))

    @property
    def dtype(self) -> torch.dtype:
        """The type its weights have, and latents and contexts are converted to."""
        return self.conv_in.weight.dtype

    @property
    def _resnets(self) -> list[ResNetBlock]:
        """In the order in which they run, since blocks are registered in that order."""
        return [module for module in self.modules() if isinstance(module, ResNetBlock)]

    @property
    def _cross_attentions(self) -> list[Attention]:
        return [module.attn2 for module in self.modules() if isinstance(module, TransformerBlock)]

    def _sinusoids(self, numbers: Tensor, channels: int) -> Tensor:
        return sinusoids(numbers, channels, self.config.flip_sin_to_cos, self.config.freq_shift)

    def _embed_classes(self, classes: Tensor) -> Tensor:
        if self.config.class_embed_type == "timestep":
            classes = self._sinusoids(classes, self.config.block_out_channels[0])
        assert self.class_embedding is not None
        return self.class_embedding(
            classes if self.config.num_class_embeds is not None else classes.to(self.dtype)
        )  # (B, 4 C0)

    def _embed_added(self, added: Added) -> Tensor:
        sizes = self._sinusoids(added.sizes.flatten(), self.config.addition_time_embed_dim or 0)  # (6B, D)
        assert self.add_embedding is not None
        return self.add_embedding(torch.cat([added.text, sizes.reshape(len(added.sizes), -1)], dim=1))  # (B, 4 C0)

    def _down_block(self, level: int) -> DownBlock:
        config, widths = self.config, self.config.block_out_channels
        width = widths[level]
        halving: Downsample | DownsampleResBlock | None = None
        if level < len(widths) - 1:
            around = config.downsample_padding == 1
            halving = (
                DownsampleResBlock(width, width, self.options) if config.resamples[level] else Downsample(width, around)
            )
        return DownBlock(
            widths[max(level - 1, 0)],
            width,
            config.layers_per_block,
            self.options,
            self._attention(level, config.attention_layers[level]),
            halving,
        )

    def _up_block(self, level: int, skips: list[int]) -> UpBlock:
        config, widths = self.config, self.config.block_out_channels
        width = widths[level]
        doubling: Upsample | UpsampleResBlock | None = None
        if level > 0:
            doubling = UpsampleResBlock(width, width, self.options) if config.resamples[level] else Upsample(width)
        return UpBlock(
            widths[min(level + 1, len(widths) - 1)],
            width,
            [skips.pop() for _ in range(config.layers_per_block + 1)],
            self.options,
            self._attention(level, config.attention_layers[level]),
            doubling,
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

    def _start_at_zero(self) -> None:
        """Make every residual branch, and the output, zero at first (Ho et al. 2020; Goyal et al. 2017, 5.1)."""
        last_layers: list[nn.Module] = [block.conv2 for block in self._resnets]
        last_layers += [module.proj_out for module in self.modules() if isinstance(module, SpatialTransformer)]
        last_layers += [module.to_out for module in self.modules() if isinstance(module, SpatialAttention)]
        for layer in [*last_layers, self.conv_out]:
            for weight in layer.parameters():
                nn.init.zeros_(weight)
