"""Parameters of the original first stages <-> our autoencoder's section."""

from __future__ import annotations

from ldm.checkpoint.compvis.params import Params, Target, expect_options, inexpressible, multiples, refused, widths_of
from ldm.config.section import parse
from ldm.models.autoencoder.config import AutoencoderConfig

KINDS = {
    "AutoencoderKL": "kl",
    "AutoencoderKLInferenceWrapper": "kl",
    "VQModel": "vq",
    "VQModelInterface": "vq",
}
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


def autoencoder_from_target(target: Target, scaling_factor: float | None = None) -> AutoencoderConfig:
    """The section; UserError names what we cannot follow."""
    kind = target.need(KINDS)
    params, network = target.params, target.params.group("ddconfig")
    params.skip(*TRAINING)
    params.expect(remap=None)
    network.expect(double_z=kind == "kl", tanh_out=False, use_linear_attn=False, resamp_with_conv=True, dropout=0.0)
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
        "codebook_size": params.number("n_embed") if kind == "vq" else None,
        "block_out_channels": widths_of(network.number("ch"), factors, f"{network.where}.ch_mult"),
        "layers_per_block": network.number("num_res_blocks"),
        "attention_levels": levels,
        "mid_block_attention": attends,
        "sample_size": resolution,
        "scaling_factor": scaling_factor,
    }
    network.finish()
    params.finish()
    return parse(tree, AutoencoderConfig, target.where)


def autoencoder_to_target(config: AutoencoderConfig, alone: bool = False) -> Params:
    """The target and its parameters; UserError names an option that the original has none for.

    `alone`: as the whole of a file, else as the first stage of a diffusion model.
    """
    expect_options("autoencoder", config, {"norm_num_groups": 32, "shift_factor": None})
    if isinstance(config.scaling_factor, tuple):
        raise inexpressible("autoencoder.scaling_factor", list(config.scaling_factor), "one number")
    if config.attention_levels and not config.mid_block_attention:
        raise inexpressible("autoencoder.mid_block_attention", False, "true with attention_levels")
    network = {
        "double_z": config.kind == "kl",
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
    if config.kind == "vq":
        params["n_embed"] = config.codebook_size
    loss = {"target": "torch.nn.Identity"}
    name = {"kl": "AutoencoderKL", "vq": "VQModel" if alone else "VQModelInterface"}[config.kind]
    return {
        "target": f"ldm.models.autoencoder.autoencoder.{name}",
        "params": params | {"ddconfig": network, "lossconfig": loss},
    }
