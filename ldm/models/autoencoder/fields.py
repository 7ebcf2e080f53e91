"""Convert between `config.json` of diffusers' autoencoders and our configuration; fold statistics into the weights.

Each bottleneck converts the fields that only its diffusers class has.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ldm.config.section import parse
from ldm.errors import UserError
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.registry import BOTTLENECKS
from ldm.storage.fields import DIFFUSERS_VERSION, EXTRA, Fields, expect_class, extra, known_fields, one_value, refused

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
# Block types of a level without and with attention after each ResNet block.
DOWN_TYPES = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
UP_TYPES = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")

# Fields of latent statistics that pipelines of diffusers use: `scaling_factor` alone, that and `latents_mean` and
# `latents_std`, none (a factor of 1), or all, also `shift_factor`.
Statistics = Literal["factor", "channels", "none", "all"]

FOLDED = ("quant_conv", "quantize", "post_quant_conv")


def autoencoder_to_fields(config: AutoencoderConfig) -> Fields:
    """Return `config.json` of the bottleneck's diffusers class for a configuration with folded statistics.

    Raises:
        UserError: if the class has no field for an option.
    """
    attends = [level in config.attention_levels for level in range(len(config.block_out_channels))]
    measured = config.scaling_factor is not None
    return {
        "_class_name": config.bottleneck.diffusers_class,
        "_diffusers_version": DIFFUSERS_VERSION,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        **config.bottleneck.channels_to_diffusers(config),
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


def diffusers_classes() -> dict[str, str]:
    """Return the names of diffusers' autoencoder classes with the kind of each."""
    found = {BOTTLENECKS[kind].diffusers_class: kind for kind in BOTTLENECKS}
    return {name: kind for name, kind in found.items() if name is not None}


def autoencoder_from_fields(fields: Fields, where: Path, statistics: Statistics = "all") -> AutoencoderConfig:
    """Return the configuration for a `config.json` of diffusers, with those statistics that its pipeline uses.

    Raises:
        UserError: if a field has an unsupported value.
    """
    kinds = diffusers_classes()
    expect_class(fields, tuple(kinds), where)
    kind = kinds[fields["_class_name"]]
    bottleneck = BOTTLENECKS[kind]
    theirs = known_fields(fields, bottleneck.diffusers_defaults, bottleneck.diffusers_fixed, where)
    ours = {name: theirs[name] for name in theirs.keys() & bottleneck.section.model_fields.keys()} | {
        "kind": kind,
        "attention_levels": _attention_levels(theirs, where),
        "mid_block_attention": theirs["mid_block_add_attention"],
        "sample_size": one_value(theirs["sample_size"], "sample_size", where),
        "statistics": extra(fields).get("statistics", "tensor"),
        **_statistics(theirs, extra(fields).get("measured", True), statistics, where),
    }
    return parse(ours | bottleneck.channels_from_diffusers(theirs), bottleneck.section, str(where))


def _statistics(theirs: Fields, measured: bool, used: Statistics, where: Path) -> Fields:
    """Return the options of latent statistics; `z = latents * latents_std / scaling_factor + latents_mean`."""
    if used == "none":
        return {"scaling_factor": 1.0, "shift_factor": None}
    scaling: Any = theirs["scaling_factor"] if measured else None
    shift: Any = theirs.get("shift_factor") if used == "all" else None
    mean, std = theirs.get("latents_mean"), theirs.get("latents_std")
    if used == "factor" or mean is None or std is None:
        return {"scaling_factor": scaling, "shift_factor": shift}
    for name, values in (("latents_mean", mean), ("latents_std", std)):
        if shift is not None or not isinstance(values, list) or len(values) != theirs["latent_channels"]:
            raise refused(name, values, where)
    if not all(isinstance(value, int | float) and value > 0 for value in std):
        raise refused("latents_std", std, where)
    return {"scaling_factor": tuple((scaling or 1.0) / value for value in std), "shift_factor": tuple(mean)}


def without_quant_convolutions(fields: Fields, config: AutoencoderConfig) -> dict[str, Tensor]:
    """Return identities in place of the convolutions that `use_quant_conv` and `use_post_quant_conv` leave out."""
    widths = {
        "quant_conv": config.bottleneck.moments * config.latent_channels,
        "post_quant_conv": config.latent_channels,
    }
    found: dict[str, Tensor] = {}
    for name, width in widths.items():
        if fields.get(f"use_{name}") is False:
            found |= {f"{name}.weight": torch.eye(width)[:, :, None, None], f"{name}.bias": torch.zeros(width)}
    return found


def _attention_levels(theirs: Fields, where: Path) -> tuple[int, ...]:
    """Return the levels whose blocks have attention, the same in encoder and decoder."""
    down, up = theirs["down_block_types"], theirs["up_block_types"]
    if len(down) != len(theirs["block_out_channels"]) or any(kind not in DOWN_TYPES for kind in down):
        raise refused("down_block_types", down, where)
    if any(kind not in UP_TYPES for kind in up):
        raise refused("up_block_types", up, where)
    attends = [DOWN_TYPES.index(kind) for kind in down]
    if [UP_TYPES.index(kind) for kind in reversed(up)] != attends:
        raise UserError(
            f"{where}: up_block_types {up} must have attention at the same levels as down_block_types {down}"
        )
    return tuple(level for level, attention in enumerate(attends) if attention)


def fold_statistics(
    config: AutoencoderConfig, tensors: dict[str, Tensor]
) -> tuple[AutoencoderConfig, dict[str, Tensor]]:
    """Fold statistics into the weights, leaving one scaling factor s: the same images, and latents for diffusers.

    With ratios r_c = s_c / s, the encoder's last layer returns z' = (z - shift_c) r_c; the decoder's first layer
    computes z = z' / r_c + shift_c.
    """
    scaling = config.scaling_factor
    if not isinstance(scaling, tuple) and not config.shift_factor:
        return config, tensors
    channels = config.latent_channels
    scales = scaling if isinstance(scaling, tuple) else (1.0 if scaling is None else scaling,) * channels
    common = math.exp(sum(math.log(s) for s in scales) / channels) if isinstance(scaling, tuple) else scales[0]
    ratios = torch.tensor(scales, dtype=torch.float64) / common
    shifts = torch.tensor(config.shift_factor or 0.0, dtype=torch.float64).expand(channels)

    given = {name: tensors[name].double().cpu() for name in tensors if name.split(".")[0] in FOLDED}
    folded = config.bottleneck.fold_encoder(given, ratios, shifts)
    weight, bias = given["post_quant_conv.weight"], given["post_quant_conv.bias"]
    folded["post_quant_conv.weight"] = weight / ratios[None, :, None, None]
    folded["post_quant_conv.bias"] = bias + weight[:, :, 0, 0] @ shifts
    folded = {name: tensor.to(tensors[name].dtype) for name, tensor in folded.items()}
    update = {"scaling_factor": None if scaling is None else common, "shift_factor": None}
    return config.model_copy(update=update), tensors | folded
