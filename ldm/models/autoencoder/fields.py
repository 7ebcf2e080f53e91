"""`config.json` of diffusers' autoencoders, AutoencoderKL and VQModel, <-> ours."""

from __future__ import annotations

from pathlib import Path

from ldm.config.section import parse
from ldm.errors import UserError
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.storage.fields import (
    DIFFUSERS_VERSION,
    EXTRA,
    Fields,
    Fixed,
    expect_class,
    extra,
    known_fields,
    one_value,
    refused,
)

CLASSES = {"kl": "AutoencoderKL", "vq": "VQModel"}

SHARED_DEFAULTS: Fields = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [64],
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "mid_block_add_attention": True,
    "sample_size": 32,
    "scaling_factor": 0.18215,
}
DEFAULTS: dict[str, Fields] = {
    "kl": SHARED_DEFAULTS | {"latent_channels": 4, "shift_factor": None, "force_upcast": True},
    "vq": SHARED_DEFAULTS
    | {"latent_channels": 3, "vq_embed_dim": None, "num_vq_embeddings": 256, "force_upcast": False},
}
FIXED: dict[str, Fixed] = {
    "kl": {
        "act_fn": ("silu", "swish"),
        "use_quant_conv": (True,),
        "use_post_quant_conv": (True,),
        "latents_mean": (None,),
        "latents_std": (None,),
    },
    "vq": {
        "act_fn": ("silu", "swish"),
        "norm_type": ("group",),
        "lookup_from_codebook": (False,),
    },
}
# Blocks of a level without and with attention after each of its ResNet blocks.
DOWN_TYPES = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
UP_TYPES = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")


def autoencoder_to_fields(config: AutoencoderConfig) -> Fields:
    """`config.json` of diffusers' AutoencoderKL or VQModel, of an autoencoder whose statistics have been folded.

    Raises UserError, by the field's name, for what the class cannot express.
    """
    attends = [level in config.attention_levels for level in range(len(config.block_out_channels))]
    measured = config.scaling_factor is not None
    return {
        "_class_name": CLASSES[config.kind],
        "_diffusers_version": DIFFUSERS_VERSION,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        **_channels_to_fields(config),
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": [DOWN_TYPES[attention] for attention in attends],
        "up_block_types": [UP_TYPES[attention] for attention in reversed(attends)],
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_num_groups,
        "mid_block_add_attention": config.mid_block_attention,
        "sample_size": config.sample_size,
        "act_fn": "silu",
        "force_upcast": config.force_upcast,
        "scaling_factor": config.scaling_factor if measured else 1.0,  # diffusers needs a number
        EXTRA: {"measured": measured, "statistics": config.statistics},
    }


def _channels_to_fields(config: AutoencoderConfig) -> Fields:
    if config.kind == "vq":  # whose latent_channels are those of the encoder's output
        return {
            "latent_channels": config.z_width,
            "vq_embed_dim": config.latent_channels,
            "num_vq_embeddings": config.codebook_size,
        }
    if config.z_width != config.latent_channels:
        raise UserError(
            f"autoencoder.z_channels is {config.z_width} and latent_channels {config.latent_channels}: diffusers' "
            "AutoencoderKL has one number for both, so this autoencoder cannot be written as one"
        )
    return {"latent_channels": config.latent_channels}


def autoencoder_from_fields(fields: Fields, where: Path) -> AutoencoderConfig:
    """The configuration of an AutoencoderKL or a VQModel; UserError names a field that cannot be had."""
    expect_class(fields, tuple(CLASSES.values()), where)
    kind = next(kind for kind, name in CLASSES.items() if name == fields["_class_name"])
    theirs = known_fields(fields, DEFAULTS[kind], FIXED[kind], where)
    ours = {name: theirs[name] for name in theirs.keys() & AutoencoderConfig.model_fields.keys()} | {
        "kind": kind,
        "attention_levels": _attention_levels(theirs, where),
        "mid_block_attention": theirs["mid_block_add_attention"],
        "sample_size": one_value(theirs["sample_size"], "sample_size", where),
        "scaling_factor": theirs["scaling_factor"] if extra(fields).get("measured", True) else None,
        "statistics": extra(fields).get("statistics", "tensor"),
    }
    if kind == "vq":
        width, inner = theirs["vq_embed_dim"], theirs["latent_channels"]
        ours["latent_channels"] = inner if width is None else width
        ours |= {"z_channels": inner, "codebook_size": theirs["num_vq_embeddings"]}
    return parse(ours, AutoencoderConfig, str(where))


def _attention_levels(theirs: Fields, where: Path) -> tuple[int, ...]:
    """Levels whose blocks have attention, the same in encoder and decoder."""
    down, up = theirs["down_block_types"], theirs["up_block_types"]
    if len(down) != len(theirs["block_out_channels"]) or any(kind not in DOWN_TYPES for kind in down):
        raise refused("down_block_types", down, where)
    if any(kind not in UP_TYPES for kind in up):
        raise refused("up_block_types", up, where)
    attends = [DOWN_TYPES.index(kind) for kind in down]
    if [UP_TYPES.index(kind) for kind in reversed(up)] != attends:
        raise UserError(f"{where}: up_block_types {up} do not mirror down_block_types {down}, which ldm needs")
    return tuple(level for level, attention in enumerate(attends) if attention)
