"""Parameters of the original autoencoders <-> our configuration."""

from __future__ import annotations

from ldm.checkpoint.compvis.params import Params, Target, expect_options, inexpressible, multiples, refused, widths_of
from ldm.config.section import parse
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.registry import BOTTLENECKS

TRAINING = [
    "monitor",
    "ckpt_path",
    "ignore_keys",
    "image_key",
    "colorize_nlabels",
    "batch_resize_range",
    "scheduler_config",
    "lr_g_factor",
    "use_ema",
    "lossconfig",
    "sane_index_shape",
    "learning_rate",
    "base_learning_rate",
]


def kinds_of_autoencoders() -> dict[str, str]:
    """Return the names of the original classes with our kind of each."""
    return {name: kind for kind in BOTTLENECKS for name in BOTTLENECKS[kind].compvis_classes}


def autoencoder_from_target(target: Target, scaling_factor: float | None = None) -> AutoencoderConfig:
    """Return the configuration for a target.

    Raises:
        UserError: if a parameter has an unsupported value.
    """
    kind = target.need(kinds_of_autoencoders())
    bottleneck = BOTTLENECKS[kind]
    params, network = target.params, target.params.group("ddconfig")
    params.skip(*TRAINING)
    params.expect(remap=None)
    network.expect(
        double_z=bottleneck.moments == 2, tanh_out=False, use_linear_attn=False, resamp_with_conv=True, dropout=0.0
    )
    attends = network.choose("attn_type", {"vanilla": True, "vanilla-xformers": True, "none": False}, "vanilla")
    factors = network.numbers("ch_mult")
    resolution, resolutions = network.number("resolution"), network.numbers("attn_resolutions", [])
    levels = [level for level in range(len(factors)) if resolution // 2**level in resolutions]
    if levels and not attends:
        raise refused(f"{network.where}.attn_type", "none")
    latent_channels, z_channels = params.number("embed_dim"), network.number("z_channels")
    tree: Params = {
        "kind": kind,
        "in_channels": network.number("in_channels"),
        "out_channels": network.number("out_ch"),
        "latent_channels": latent_channels,
        "z_channels": None if z_channels == latent_channels else z_channels,
        "block_out_channels": widths_of(network.number("ch"), factors, f"{network.where}.ch_mult"),
        "layers_per_block": network.number("num_res_blocks"),
        "attention_levels": levels,
        "mid_block_attention": attends,
        "sample_size": resolution,
        "scaling_factor": scaling_factor,
        **{ours: params.number(theirs) for theirs, ours in bottleneck.compvis_options.items()},
    }
    network.finish()
    params.finish()
    return parse(tree, bottleneck.section, target.where)


def autoencoder_to_target(config: AutoencoderConfig, alone: bool = False) -> Params:
    """Return the target and its parameters, for a file of the autoencoder `alone` or with a diffusion model.

    Raises:
        UserError: if the original code has no parameter for an option.
    """
    bottleneck = config.bottleneck
    expect_options("autoencoder", config, {"norm_num_groups": 32, "shift_factor": None})
    if isinstance(config.scaling_factor, tuple):
        raise inexpressible("autoencoder.scaling_factor", list(config.scaling_factor), "one number")
    if config.attention_levels and not config.mid_block_attention:
        raise inexpressible("autoencoder.mid_block_attention", False, "true with attention_levels")
    network = {
        "double_z": bottleneck.moments == 2,
        "z_channels": config.z_width,
        "resolution": config.sample_size,
        "in_channels": config.in_channels,
        "out_ch": config.out_channels,
        "ch": config.block_out_channels[0],
        "ch_mult": multiples("autoencoder", config.block_out_channels),
        "num_res_blocks": config.layers_per_block,
        "attn_resolutions": [config.sample_size // 2**level for level in config.attention_levels],
        "dropout": 0.0,
    }
    if not config.mid_block_attention:
        network["attn_type"] = "none"
    params: Params = {"embed_dim": config.latent_channels}
    params |= {theirs: getattr(config, ours) for theirs, ours in bottleneck.compvis_options.items()}
    loss = {"target": "torch.nn.Identity"}
    return {
        "target": f"ldm.models.autoencoder.autoencoder.{bottleneck.compvis_classes[0 if alone else 1]}",
        "params": params | {"ddconfig": network, "lossconfig": loss},
    }
