"""Parameters of the original `UNetModel` <-> the section `unet`."""

from __future__ import annotations

from typing import Any

from ldm.checkpoint.compvis.params import Group, Params, expect_options, inexpressible, multiples, refused, widths_of
from ldm.config.section import parse
from ldm.models.unet.config import UNetConfig

ALWAYS = {
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0.0,
}
CLASS_KINDS = {"projection": "sequential", "timestep": "timestep"}  # our class_embed_type: their num_classes


def unet_from_params(params: Group, size_width: int | None = None) -> tuple[UNetConfig, bool]:
    """Convert parameters to the section; also return whether plain attention is stored grouped by head.

    Args:
        size_width: width of the embedding of each of SDXL's six sizes; None for other models.

    Raises:
        UserError: for an unsupported parameter.
    """
    params.expect(
        conv_resample=True,
        dims=2,
        n_embed=None,
        disable_self_attentions=None,
        num_attention_blocks=None,
        disable_middle_self_attn=False,
        num_heads_upsample=-1,
    )
    params.skip("use_checkpoint", "use_fp16", "use_bf16", "legacy", "spatial_transformer_attn_type")
    factors = params.numbers("channel_mult", (1, 2, 4, 8))
    widths = widths_of(params.number("model_channels"), factors, f"{params.where}.channel_mult")
    transformer = params.choose("use_spatial_transformer", {True: True, False: False}, size_width is not None)
    linear = params.choose("use_linear_in_transformer", {True: True, False: False}, False)
    depths = _depths(params, [2**level for level in range(len(widths))])
    tree: Params = {
        "sample_size": params.number("image_size", 128),  # missing in SDXL's files
        "in_channels": params.number("in_channels"),
        "out_channels": params.number("out_channels"),
        "block_out_channels": widths,
        "layers_per_block": params.number("num_res_blocks"),
        "attention": "transformer" if transformer else "plain",
        "attention_layers": depths[:-1],
        "mid_attention_layers": None if depths[-1] == max(1, depths[-2]) else depths[-1],
        "num_attention_heads": _heads(params, widths),
        "cross_attention_dim": params.take("context_dim", None),
        **({"use_linear_projection": linear} if transformer else {}),
        "dropout": params.take("dropout", 0.0),
        "time_scale_shift": params.take("use_scale_shift_norm", False),
        "resnet_resampling": params.take("resblock_updown", False),
        "time_cond_proj_dim": params.take("time_cond_proj_dim", None),  # of LCMs; the first releases have none
        **_labels(params, size_width),
    }
    width = tree["cross_attention_dim"]
    if (
        isinstance(width, list) and width and all(other == width[0] for other in width)
    ):  # one for each transformer block
        tree["cross_attention_dim"] = width[0]
    heads_first = not params.take("use_new_attention_order", False)
    params.finish()
    return parse(tree, UNetConfig, params.where), heads_first


def _depths(params: Group, factors: list[int]) -> list[int]:
    """Return the transformer blocks of each level, given by its downsampling factor, and of the mid block."""
    depth = params.take("transformer_depth", 1)
    depths = depth if isinstance(depth, list) else [depth] * len(factors)
    middle = params.take("transformer_depth_middle", None)
    attends = params.numbers("attention_resolutions")
    if len(depths) != len(factors) or not all(type(value) is int for value in depths):
        raise refused(f"{params.where}.transformer_depth", depth)
    levels = [blocks if factor in attends else 0 for factor, blocks in zip(factors, depths, strict=True)]
    return [*levels, depths[-1] if middle is None else middle]


def _heads(params: Group, widths: tuple[int, ...]) -> int | tuple[int, ...]:
    heads, head_width = params.number("num_heads", -1), params.number("num_head_channels", -1)
    if head_width == -1 and heads > 0:
        return heads
    if head_width < 1 or any(width % head_width for width in widths):
        raise refused(f"{params.where}.num_head_channels", head_width)
    return tuple(width // head_width for width in widths)


def _labels(params: Group, size_width: int | None) -> Params:
    classes, width = params.take("num_classes", None), params.take("adm_in_channels", None)
    if isinstance(classes, int):
        return {"num_class_embeds": classes}
    if size_width is not None and classes == "sequential":
        return {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": size_width,
            "projection_class_embeddings_input_dim": width,
        }
    kinds: dict[Any, Any] = {theirs: ours for ours, theirs in CLASS_KINDS.items()} | {None: None}
    if classes not in kinds:
        raise refused(f"{params.where}.num_classes", classes)
    return {"class_embed_type": kinds[classes], "projection_class_embeddings_input_dim": width}


def unet_to_params(config: UNetConfig) -> Params:
    """Convert the section to parameters.

    Raises:
        UserError: for an option without a parameter.
    """
    expect_options("unet", config, ALWAYS)
    if not config.mid_layers:
        raise inexpressible("unet.mid_attention_layers", 0, "at least 1")
    if len(set(config.resamples[:-1])) > 1:
        raise inexpressible("unet.resnet_resampling", list(config.resamples), "the same on all levels")
    params: Params = {
        "image_size": config.sample_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "model_channels": config.block_out_channels[0],
        "attention_resolutions": [2**level for level, layers in enumerate(config.attention_layers) if layers],
        "num_res_blocks": config.layers_per_block,
        "channel_mult": multiples("unet", config.block_out_channels),
        **_heads_to_params(config),
        **_labels_to_params(config),
    }
    if config.attention == "transformer":
        params |= _transformer_to_params(config)
    flags = {
        "use_scale_shift_norm": config.time_scale_shift,
        "resblock_updown": config.resamples[0],
        "dropout": config.dropout,
        "time_cond_proj_dim": config.time_cond_proj_dim,
    }
    return params | {name: value for name, value in flags.items() if value}


def _transformer_to_params(config: UNetConfig) -> Params:
    depths = {*config.attention_layers, config.mid_layers} - {0}
    depth: Params = {"transformer_depth": config.mid_layers}
    if len(depths) > 1:  # not supported by the first releases
        depth = {
            "transformer_depth": [max(1, layers) for layers in config.attention_layers],
            "transformer_depth_middle": config.mid_layers,
        }
    return {
        "use_spatial_transformer": True,
        **depth,
        "context_dim": config.cross_attention_dim,
        "use_linear_in_transformer": config.use_linear_projection,
        "legacy": False,
    }


def _heads_to_params(config: UNetConfig) -> Params:
    heads = config.heads
    head_widths = {width // count for width, count in zip(config.block_out_channels, heads, strict=True)}
    if len(set(heads)) == 1:
        return {"num_heads": heads[0]}
    if len(head_widths) == 1:
        return {"num_head_channels": head_widths.pop()}
    raise inexpressible("unet.num_attention_heads", list(heads), "one number, or as many channels a head everywhere")


def _labels_to_params(config: UNetConfig) -> Params:
    if config.num_class_embeds is not None:
        return {"num_classes": config.num_class_embeds}
    if config.addition_embed_type is not None:
        return {"num_classes": "sequential", "adm_in_channels": config.projection_class_embeddings_input_dim}
    if config.class_embed_type is None:
        return {}
    if config.class_embed_type not in CLASS_KINDS:
        raise inexpressible("unet.class_embed_type", config.class_embed_type, " or ".join(CLASS_KINDS))
    width = config.projection_class_embeddings_input_dim
    return {"num_classes": CLASS_KINDS[config.class_embed_type]} | ({} if width is None else {"adm_in_channels": width})
