"""`config.json` of diffusers' U-Nets <-> ours: their oddities are translated here alone."""

from __future__ import annotations

from pathlib import Path

from ldm.checkpoint.fields import (
    DIFFUSERS_VERSION,
    Fields,
    Fixed,
    expect_blocks,
    expect_class,
    known_fields,
    one_value,
    refused,
)
from ldm.config import UNetConfig, parse

UNET_DEFAULTS: Fields = {
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,
    "cross_attention_dim": 1280,
    "use_linear_projection": False,
    "norm_num_groups": 32,
    "dropout": 0.0,
    "upcast_attention": False,  # the fused kernels sum in float32 anyway
    "addition_embed_type_num_heads": 64,  # belongs to addition_embed_type
}
UNET_FIXED: Fixed = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None,),
    "addition_time_embed_dim": (None,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "norm_eps": (1e-5,),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "projection_class_embeddings_input_dim": (None,),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}


def unet_to_fields(config: UNetConfig) -> Fields:
    """`config.json` of diffusers' UNet2DConditionModel, whose `attention_head_dim` is the number of heads."""
    heads = config.num_attention_heads
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "sample_size": config.sample_size,
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": _down_types(config.attention_layers),
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": _up_types(config.attention_layers),
        "layers_per_block": config.layers_per_block,
        "transformer_layers_per_block": [max(1, layers) for layers in config.attention_layers],
        "attention_head_dim": heads if isinstance(heads, int) else list(heads),
        "cross_attention_dim": config.cross_attention_dim,
        "use_linear_projection": config.use_linear_projection,
        "norm_num_groups": config.norm_num_groups,
        "dropout": config.dropout,
        "act_fn": "silu",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }


def unet_from_fields(fields: Fields, where: Path) -> UNetConfig:
    """The configuration of a UNet2DConditionModel; UserError names a field that cannot be had."""
    expect_class(fields, ("UNet2DConditionModel",), where)
    theirs = known_fields(fields, UNET_DEFAULTS, UNET_FIXED, where)
    ours = {name: theirs[name] for name in theirs.keys() & UNetConfig.model_fields.keys()} | {
        "attention_layers": _attention_layers(theirs, where),
        "num_attention_heads": theirs["attention_head_dim"],
    }
    for name in ("sample_size", "layers_per_block", "cross_attention_dim"):
        ours[name] = one_value(theirs[name], name, where)
    return parse(ours, UNetConfig, str(where))


def _attention_layers(theirs: Fields, where: Path) -> tuple[int, ...]:
    """Transformer blocks of each level, 0 where the block type has none."""
    depths, types = theirs["transformer_layers_per_block"], theirs["down_block_types"]
    depths = depths if isinstance(depths, list) else [depths] * len(types)
    if not types or len(depths) != len(types) or not all(isinstance(depth, int) for depth in depths):
        raise refused("transformer_layers_per_block", depths, where)
    layers = tuple(depth if kind == "CrossAttnDownBlock2D" else 0 for depth, kind in zip(depths, types, strict=True))
    if depths[-1] != max(1, layers[-1]):  # that of the mid block, which has one of its own under a plain level
        raise refused("transformer_layers_per_block", depths, where)
    expect_blocks(theirs, "down_block_types", _down_types(layers), where)
    expect_blocks(theirs, "up_block_types", _up_types(layers), where)
    return layers


def _down_types(attention_layers: tuple[int, ...]) -> list[str]:
    return ["CrossAttnDownBlock2D" if layers else "DownBlock2D" for layers in attention_layers]


def _up_types(attention_layers: tuple[int, ...]) -> list[str]:
    return ["CrossAttnUpBlock2D" if layers else "UpBlock2D" for layers in reversed(attention_layers)]
