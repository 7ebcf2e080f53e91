"""Tensor names of the original U-Net (`openaimodel.UNetModel`), with consecutive block numbers, <-> ours, by level."""

from __future__ import annotations

from collections.abc import Iterator

from ldm.checkpoint.compvis.rules import (
    Rule,
    Rules,
    Transform,
    chain,
    convolution,
    interleaved,
    layer,
    layers,
    stacked,
)
from ldm.models.unet.config import UNetConfig

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
}
# Layers of a transformer block, with the same names on both sides.
PROJECTIONS = [f"{attention}.to_{kind}" for attention in ("attn1", "attn2") for kind in "qkv"]
LAYERS = ("norm1", "norm2", "norm3", "attn1.to_out.0", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2")


def unet_rules(config: UNetConfig, heads_first: bool = True) -> Rules:
    """Return the rules of a U-Net.

    Plain attention stores queries, keys and values in one tensor, grouped by head with `heads_first` (the original's
    QKVAttentionLegacy), or else by queries, keys and values (its `use_new_attention_order`).
    """
    return Rules(tuple(_UNetRules(config, heads_first).rules()))


class _UNetRules:
    """Visits the blocks of a U-Net in running order and yields their rules."""

    def __init__(self, config: UNetConfig, heads_first: bool) -> None:
        self.config = config
        self.heads_first = heads_first
        self.width = config.block_out_channels[0]  # of the output of the last block
        self.skips = [self.width]  # widths of the skip connections

    def rules(self) -> Iterator[Rule]:
        yield from layers("time_embed", "time_embedding", {"0": "linear_1", "2": "linear_2"})
        if self.config.embeds_guidance:
            yield from layer("time_embed.cond_proj", "time_embedding.cond_proj", bias=False)
        yield from self._labels()
        yield from layer("input_blocks.0.0", "conv_in")
        yield from self._encoder()
        yield from self._resnet("middle_block.0", "mid_block.resnets.0", self.width, self.width)
        yield from self._attention("middle_block.1", "mid_block.attentions.0", -1, self.config.mid_layers)
        yield from self._resnet("middle_block.2", "mid_block.resnets.1", self.width, self.width)
        yield from self._decoder()
        yield from layer("out.0", "conv_norm_out")
        yield from layer("out.2", "conv_out")

    def _labels(self) -> Iterator[Rule]:
        """Return rules of the conditioning that is added to the time embedding."""
        names = {"0": "linear_1", "2": "linear_2"}
        if self.config.num_class_embeds is not None:
            yield from layer("label_emb", "class_embedding", bias=False)
        if self.config.class_embed_type == "projection":
            yield from layers("label_emb.0", "class_embedding", names)
        if self.config.class_embed_type == "timestep":
            yield from layers("label_emb.1", "class_embedding", names)
        if self.config.addition_embed_type == "text_time":
            yield from layers("label_emb.0", "add_embedding", names)

    def _encoder(self) -> Iterator[Rule]:
        number = 1
        for level, width in enumerate(self.config.block_out_channels):
            block = f"down_blocks.{level}"
            for index in range(self.config.layers_per_block):
                yield from self._resnet(f"input_blocks.{number}.0", f"{block}.resnets.{index}", self.width, width)
                yield from self._attention(f"input_blocks.{number}.1", f"{block}.attentions.{index}", level)
                self._add_skip(width)
                number += 1
            if level < len(self.config.block_out_channels) - 1:
                yield from self._resampling(f"input_blocks.{number}.0", f"{block}.downsamplers.0", level, "op")
                self._add_skip(width)
                number += 1

    def _add_skip(self, width: int) -> None:
        self.width = width
        self.skips.append(width)

    def _decoder(self) -> Iterator[Rule]:
        number = 0
        levels = len(self.config.block_out_channels)
        for level in reversed(range(levels)):
            width, block = self.config.block_out_channels[level], f"up_blocks.{levels - 1 - level}"
            for index in range(self.config.layers_per_block + 1):
                theirs = f"output_blocks.{number}"
                joined = self.width + self.skips.pop()
                yield from self._resnet(f"{theirs}.0", f"{block}.resnets.{index}", joined, width)
                yield from self._attention(f"{theirs}.1", f"{block}.attentions.{index}", level)
                self.width = width
                number += 1
            if level > 0:
                place = 2 if self.config.attention_layers[level] else 1  # after the attention, if there is one
                yield from self._resampling(f"{theirs}.{place}", f"{block}.upsamplers.0", level, "conv")

    def _resnet(self, theirs: str, ours: str, width_in: int, width_out: int) -> Iterator[Rule]:
        yield from layers(theirs, ours, RESNET)
        if width_in != width_out:
            yield from layer(f"{theirs}.skip_connection", f"{ours}.conv_shortcut")

    def _resampling(self, theirs: str, ours: str, level: int, name: str) -> Iterator[Rule]:
        if self.config.resamples[level]:
            yield from layers(theirs, ours, RESNET)
        else:
            yield from layer(f"{theirs}.{name}", f"{ours}.conv")

    def _attention(self, theirs: str, ours: str, level: int, blocks: int | None = None) -> Iterator[Rule]:
        """Return the rules of attention with a number of transformer blocks, by default the level's."""
        blocks = self.config.attention_layers[level] if blocks is None else blocks
        if not blocks:
            return
        if self.config.attention == "plain":
            yield from self._plain_attention(theirs, ours, self.config.heads[level])
            return
        for name in ("norm", "proj_in", "proj_out"):
            yield from layer(f"{theirs}.{name}", f"{ours}.{name}")
        for index in range(blocks):
            block = f"transformer_blocks.{index}"
            for name in PROJECTIONS:
                yield from layer(f"{theirs}.{block}.{name}", f"{ours}.{block}.{name}", bias=False)
            for name in LAYERS:
                yield from layer(f"{theirs}.{block}.{name}", f"{ours}.{block}.{name}")

    def _plain_attention(self, theirs: str, ours: str, heads: int) -> Iterator[Rule]:
        split = interleaved(3, heads) if self.heads_first else stacked(3)
        changes: dict[str, Transform] = {"weight": chain(convolution(1), split), "bias": split}
        yield from layer(f"{theirs}.norm", f"{ours}.group_norm")
        for kind, change in changes.items():
            yield Rule((f"{theirs}.qkv.{kind}",), tuple(f"{ours}.to_{part}.{kind}" for part in "qkv"), change)
        yield from layer(f"{theirs}.proj_out", f"{ours}.to_out.0", convolution(1))
