"""Key names of the original autoencoders, whose decoder numbers levels from the finest, <-> ours."""

from __future__ import annotations

from collections.abc import Iterator

from ldm.checkpoint.compvis.rules import Rule, Rules, convolution, layer, layers
from ldm.models.autoencoder.config import AutoencoderConfig

RESNET = {name: name for name in ("norm1", "conv1", "norm2", "conv2")}


def autoencoder_rules(config: AutoencoderConfig) -> Rules:
    """Return the rules for an autoencoder's keys."""
    return Rules(tuple(_rules(config)))


def _rules(config: AutoencoderConfig) -> Iterator[Rule]:
    widths = config.block_out_channels
    yield from _ends("encoder")
    before = widths[0]
    for level, width in enumerate(widths):
        blocks = [before] + [width] * (config.layers_per_block - 1)
        yield from _level(f"encoder.down.{level}", f"encoder.down_blocks.{level}", blocks, width, config, level)
        if level < len(widths) - 1:
            yield from layer(
                f"encoder.down.{level}.downsample.conv", f"encoder.down_blocks.{level}.downsamplers.0.conv"
            )
        before = width
    yield from _middle("encoder", config)

    yield from _ends("decoder")
    yield from _middle("decoder", config)
    for place, level in enumerate(reversed(range(len(widths)))):
        width = widths[level]
        blocks = [before] + [width] * config.layers_per_block
        yield from _level(f"decoder.up.{level}", f"decoder.up_blocks.{place}", blocks, width, config, level)
        if level > 0:
            yield from layer(f"decoder.up.{level}.upsample.conv", f"decoder.up_blocks.{place}.upsamplers.0.conv")
        before = width

    yield from layer("quant_conv", "quant_conv")
    yield from layer("post_quant_conv", "post_quant_conv")
    if config.bottleneck.has_codebook:
        yield from layer("quantize.embedding", "quantize.embedding", bias=False)


def _ends(half: str) -> Iterator[Rule]:
    yield from layers(half, half, {"conv_in": "conv_in", "norm_out": "conv_norm_out", "conv_out": "conv_out"})


def _level(
    theirs: str, ours: str, widths_in: list[int], width: int, config: AutoencoderConfig, level: int
) -> Iterator[Rule]:
    for index, width_in in enumerate(widths_in):
        yield from _resnet(f"{theirs}.block.{index}", f"{ours}.resnets.{index}", width_in != width)
        if level in config.attention_levels:
            yield from _attention(f"{theirs}.attn.{index}", f"{ours}.attentions.{index}")


def _middle(half: str, config: AutoencoderConfig) -> Iterator[Rule]:
    for index in range(2):
        yield from _resnet(f"{half}.mid.block_{index + 1}", f"{half}.mid_block.resnets.{index}", shortcut=False)
    if config.mid_block_attention:
        yield from _attention(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0")


def _resnet(theirs: str, ours: str, shortcut: bool) -> Iterator[Rule]:
    yield from layers(theirs, ours, RESNET)
    if shortcut:
        yield from layer(f"{theirs}.nin_shortcut", f"{ours}.conv_shortcut")


def _attention(theirs: str, ours: str) -> Iterator[Rule]:
    yield from layer(f"{theirs}.norm", f"{ours}.group_norm")
    for their_name, our_name in {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}.items():
        yield from layer(f"{theirs}.{their_name}", f"{ours}.{our_name}", convolution(2))
