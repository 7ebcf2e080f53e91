"""`config.json` of diffusers' autoencoders <-> ours."""

from __future__ import annotations

from pathlib import Path

from ldm.checkpoint.fields import (
    DIFFUSERS_VERSION,
    EXTRA,
    Fields,
    Fixed,
    expect_blocks,
    expect_class,
    extra,
    known_fields,
    one_value,
)
from ldm.config import AutoencoderConfig, parse

AUTOENCODER_DEFAULTS: Fields = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [64],
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "mid_block_add_attention": True,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "force_upcast": True,  # a hint to pipelines in half precision
}
AUTOENCODER_FIXED: Fixed = {
    "act_fn": ("silu", "swish"),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
    "latents_mean": (None,),
    "latents_std": (None,),
}


def autoencoder_to_fields(config: AutoencoderConfig) -> Fields:
    """`config.json` of diffusers' AutoencoderKL; shift and per-channel statistics must have been folded away."""
    levels = len(config.block_out_channels)
    measured = config.scaling_factor is not None
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": DIFFUSERS_VERSION,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "latent_channels": config.latent_channels,
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_num_groups,
        "mid_block_add_attention": config.mid_block_attention,
        "sample_size": config.sample_size,
        "act_fn": "silu",
        "scaling_factor": config.scaling_factor if measured else 1.0,  # diffusers needs a number
        EXTRA: {"measured": measured, "statistics": config.statistics},
    }


def autoencoder_from_fields(fields: Fields, where: Path) -> AutoencoderConfig:
    """The configuration of an AutoencoderKL; UserError names a field that cannot be had."""
    expect_class(fields, ("AutoencoderKL",), where)
    theirs = known_fields(fields, AUTOENCODER_DEFAULTS, AUTOENCODER_FIXED, where)
    levels = len(theirs["block_out_channels"])
    expect_blocks(theirs, "down_block_types", ["DownEncoderBlock2D"] * levels, where)
    expect_blocks(theirs, "up_block_types", ["UpDecoderBlock2D"] * levels, where)
    ours = {name: theirs[name] for name in theirs.keys() & AutoencoderConfig.model_fields.keys()} | {
        "mid_block_attention": theirs["mid_block_add_attention"],
        "sample_size": one_value(theirs["sample_size"], "sample_size", where),
        "scaling_factor": theirs["scaling_factor"] if extra(fields).get("measured", True) else None,
        "statistics": extra(fields).get("statistics", "tensor"),
    }
    return parse(ours, AutoencoderConfig, str(where))
