"""Fields of diffusers' UNet2DConditionModel <-> the section `unet` with attention `transformer`."""

from __future__ import annotations

from pathlib import Path

from ldm.models.unet.config import UNetConfig
from ldm.models.unet.level_fields import (
    COMMON_DEFAULTS,
    COMMON_FIXED,
    common_from_fields,
    common_to_fields,
    inexpressible,
    levels_from_fields,
    resampling,
    resampling_of_attending_levels,
    whole_numbers,
)
from ldm.storage.fields import Fields, Fixed, known_fields, one_value, refused

NAME = "UNet2DConditionModel"

DEFAULTS: Fields = COMMON_DEFAULTS | {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "attention_head_dim": 8,
    "cross_attention_dim": 1280,
    "use_linear_projection": False,
    "projection_class_embeddings_input_dim": None,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "time_cond_proj_dim": None,
    "addition_embed_type_num_heads": 64,  # used by other values of addition_embed_type
    "upcast_attention": False,  # the fused kernels sum in float32 anyway
}
FIXED: Fixed = COMMON_FIXED | {
    "addition_embed_type": (None, "text_time"),
    "attention_type": ("default",),
    "class_embed_type": (None, "timestep", "identity", "projection", "simple_projection"),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_attention_heads": (None,),  # diffusers itself raises an error for others
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
}


def to_fields(config: UNetConfig) -> Fields:
    """Convert our options to fields; `attention_head_dim` of this class is the number of heads."""
    halving, doubling = resampling_of_attending_levels(config)
    if True in halving | doubling:
        why = "resamples levels with attention by convolutions only"
        raise inexpressible(NAME, "resnet_resampling", config.resnet_resampling, why)
    if config.mid_layers != (config.attention_layers[-1] or max(1, config.mid_layers)):  # the last level may have none
        why = "has as many attention blocks in its mid block as in its last level, and at least one"
        raise inexpressible(NAME, "mid_attention_layers", config.mid_layers, why)
    heads = config.num_attention_heads
    return {
        **common_to_fields(config, NAME, "CrossAttn"),
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "transformer_layers_per_block": [
            *(max(1, layers) for layers in config.attention_layers[:-1]),
            config.mid_layers,
        ],
        "attention_head_dim": heads if isinstance(heads, int) else list(heads),
        "cross_attention_dim": config.cross_attention_dim,
        "use_linear_projection": config.use_linear_projection,
        "projection_class_embeddings_input_dim": config.projection_class_embeddings_input_dim,
        "addition_embed_type": config.addition_embed_type,
        "addition_time_embed_dim": config.addition_time_embed_dim,
        "time_cond_proj_dim": config.time_cond_proj_dim,
    }


def from_fields(fields: Fields, where: Path) -> Fields:
    """Convert fields to our options.

    Raises:
        UserError: for an unsupported field.
    """
    theirs = known_fields(fields, DEFAULTS, FIXED, where)
    ours = common_from_fields(theirs, where)
    levels = levels_from_fields(theirs, "CrossAttn", where)
    depths = _depths(theirs, len(levels), where)
    layers = [depth if level.attends else 0 for depth, level in zip(depths, levels, strict=True)]
    return ours | {
        "attention": "transformer",
        "attention_layers": layers,
        "mid_attention_layers": depths[-1] if depths[-1] != max(1, layers[-1]) else None,
        "num_attention_heads": _heads(theirs, [*layers[:-1], depths[-1]], where),
        "resnet_resampling": resampling(levels),
        "cross_attention_dim": one_value(theirs["cross_attention_dim"], "cross_attention_dim", where),
    }


def _heads(theirs: Fields, layers: list[int], where: Path) -> int | list[int]:
    """Return the number of heads, one or per level, which must divide the width of levels with `layers`."""
    given, widths = theirs["attention_head_dim"], theirs["block_out_channels"]
    numbers = given if isinstance(given, list) else [given] * len(widths)
    heads = whole_numbers(numbers, "attention_head_dim", where)
    divided = len(heads) == len(widths) and not any(
        depth and width % number for width, number, depth in zip(widths, heads, layers, strict=True)
    )
    if not divided:
        raise refused("attention_head_dim", given, where)
    return heads if isinstance(given, list) else heads[0]


def _depths(theirs: Fields, levels: int, where: Path) -> list[int]:
    """Return the transformer blocks of each level, used or not; the last number also applies to the mid block."""
    name, back = "transformer_layers_per_block", "reverse_transformer_layers_per_block"
    depths = theirs[name] if isinstance(theirs[name], list) else [theirs[name]] * levels
    if len(whole_numbers(depths, name, where)) != levels:
        raise refused(name, depths, where)
    if theirs[back] not in (None, depths[::-1]):
        raise refused(back, theirs[back], where)
    return depths
