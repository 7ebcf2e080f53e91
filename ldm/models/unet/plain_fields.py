"""Fields of diffusers' UNet2DModel <-> the section `unet` with attention `plain`."""

from __future__ import annotations

from pathlib import Path

from ldm.models.unet.config import UNetConfig
from ldm.models.unet.level_fields import (
    COMMON_DEFAULTS,
    COMMON_FIXED,
    Level,
    common_from_fields,
    common_to_fields,
    inexpressible,
    levels_from_fields,
    resampling,
    resampling_of_attending_levels,
)
from ldm.storage.fields import Fields, Fixed, known_fields, refused

NAME = "UNet2DModel"

DEFAULTS: Fields = COMMON_DEFAULTS | {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [224, 448, 672, 896],
    "down_block_types": ["DownBlock2D"] + ["AttnDownBlock2D"] * 3,
    "up_block_types": ["AttnUpBlock2D"] * 3 + ["UpBlock2D"],
    "downsample_type": "conv",  # in levels with attention
    "upsample_type": "conv",
    "attention_head_dim": 8,
    "add_attention": True,  # in the mid block
    "attn_norm_num_groups": None,
    "num_train_timesteps": None,  # used by other values of time_embedding_type
}
FIXED: Fixed = COMMON_FIXED | {
    "add_attention": (True, False),
    "class_embed_type": (None, "timestep", "identity"),
    "downsample_type": ("conv", "resnet"),
    "mid_block_type": ("UNetMidBlock2D",),
    "upsample_type": ("conv", "resnet"),
}


def to_fields(config: UNetConfig) -> Fields:
    """Convert our options to fields; `attention_head_dim` of this class is the width of a head."""
    if config.class_embed_type not in FIXED["class_embed_type"]:
        raise inexpressible(NAME, "class_embed_type", config.class_embed_type, "does not project classes")
    if config.addition_embed_type is not None:
        raise inexpressible(NAME, "addition_embed_type", config.addition_embed_type, "takes no text")
    if config.embeds_guidance:
        raise inexpressible(NAME, "time_cond_proj_dim", config.time_cond_proj_dim, "takes no guidance scale")
    halving, doubling = resampling_of_attending_levels(config)
    if len(halving) == 2 or len(doubling) == 2:
        why = "resamples all levels with attention in the same way"
        raise inexpressible(NAME, "resnet_resampling", config.resnet_resampling, why)
    return {
        **common_to_fields(config, NAME, "Attn"),
        "mid_block_type": "UNetMidBlock2D",
        "add_attention": config.mid_layers > 0,
        "attention_head_dim": _head_width(config),
        # With scale-shift and without this field diffusers omits the norm of the attention in the mid block.
        "attn_norm_num_groups": config.norm_num_groups if config.time_scale_shift else None,
        "downsample_type": "resnet" if True in halving else "conv",
        "upsample_type": "resnet" if True in doubling else "conv",
    }


def from_fields(fields: Fields, where: Path) -> Fields:
    """Convert fields to our options.

    Raises:
        UserError: for an unsupported field.
    """
    theirs = known_fields(fields, DEFAULTS, FIXED, where)
    ours = common_from_fields(theirs, where)
    by_resnet = [theirs[name] == "resnet" for name in ("downsample_type", "upsample_type")]
    levels = levels_from_fields(theirs, "Attn", where, *by_resnet)
    _check_mid_norm(theirs, where)
    return ours | {
        "attention": "plain",
        "attention_layers": [int(level.attends) for level in levels],
        "mid_attention_layers": None if theirs["add_attention"] else 0,
        "num_attention_heads": _heads(theirs, levels, where),
        "cross_attention_dim": None,
        "resnet_resampling": resampling(levels),
    }


def _check_mid_norm(theirs: Fields, where: Path) -> None:
    """Raise UserError for a mid block that normalises in other groups than the rest, or not at all."""
    groups = theirs["norm_num_groups"]
    allowed = (groups,) if theirs["resnet_time_scale_shift"] == "scale_shift" else (None, groups)
    if theirs["add_attention"] and theirs["attn_norm_num_groups"] not in allowed:
        raise refused("attn_norm_num_groups", theirs["attn_norm_num_groups"], where)


def _head_width(config: UNetConfig) -> int | None:
    """Return the head width of all attentions; None: each attention has one head.

    Raises:
        UserError: if head widths differ.
    """
    attends = [*config.attention_layers[:-1], config.attention_layers[-1] or config.mid_layers]
    sizes = [
        (width, heads)
        for width, heads, layers in zip(config.block_out_channels, config.heads, attends, strict=True)
        if layers
    ]
    widths = {width // heads for width, heads in sizes}
    if len(widths) == 1:
        return widths.pop()
    if any(heads != 1 for _, heads in sizes):
        why = f"has heads of one width, not {' and '.join(map(str, sorted(widths)))}"
        raise inexpressible(NAME, "num_attention_heads", config.num_attention_heads, why)
    return None


def _heads(theirs: Fields, levels: list[Level], where: Path) -> int | list[int]:
    """Return the number of heads of each level; without attention, as many as fit."""
    head_width, widths = theirs["attention_head_dim"], theirs["block_out_channels"]
    if head_width is None:
        return 1
    attends = [level.attends for level in levels]
    attends[-1] = attends[-1] or theirs["add_attention"]
    whole = type(head_width) is int and head_width > 0
    if not whole or any(attending and width % head_width for attending, width in zip(attends, widths, strict=True)):
        raise refused("attention_head_dim", head_width, where)
    heads = [max(1, width // head_width) for width in widths]
    return heads[0] if len(set(heads)) == 1 else heads
