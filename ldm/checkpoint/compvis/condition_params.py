"""Targets of the original condition stages <-> our sections `text`, `text_2`, `classes` and `spatial`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ldm.checkpoint.compvis.condition_rules import drops_last_layer, is_open_clip
from ldm.checkpoint.compvis.params import Group, Params, Target, inexpressible, refused
from ldm.conditioning.classes import ClassesConfig
from ldm.conditioning.low_resolution import LowResolutionConfig
from ldm.conditioning.segmentation_map import SegmentationMapConfig
from ldm.conditioning.spatial import MASK, PIXELS
from ldm.conditioning.text.clip import CLIPConfig
from ldm.conditioning.text.ldm_bert import LDMBertConfig
from ldm.conditioning.text.open_clip import OpenCLIPConfig
from ldm.config.section import Section, parse
from ldm.errors import UserError
from ldm.registry import SPATIAL

MODULES = "ldm.modules.encoders.modules"
TRAINING = ("device", "freeze", "version")  # the weights that training began with

# Sizes that the original has by name: width, layers, heads.
Sizes = tuple[int, int, int]
CLIP_VERSIONS: dict[str, Sizes] = {"openai/clip-vit-large-patch14": (768, 12, 12)}
OPEN_CLIP_VERSIONS: dict[str, tuple[Sizes, str]] = {
    "ViT-H-14": ((1024, 24, 16), "laion2b_s32b_b79k"),
    "ViT-bigG-14": ((1280, 32, 20), "laion2b_s39b_b160k"),
}
POSITIONS, PIECES = 77, 49408  # of all of them
PENULTIMATE: Params = {"layer": "penultimate", "final_norm": False}


def condition_from_target(target: Target, joined: int) -> dict[str, Section]:
    """Return the sections that a condition stage becomes; `joined` channels of the U-Net's input are not latents."""
    sections: dict[str, Section] = target.need(READERS)(target.params, joined)
    target.params.finish()
    return sections


def spatial_beside_text(joined: int, latent_channels: int, where: str) -> dict[str, Section]:
    """Return the section of `joined` channels that are concatenated to the latents of a model of text.

    Raises:
        UserError: unless they are a mask and masked latents, or the latents of an image to edit.
    """
    if not joined:
        return {}
    kinds = {latent_channels: ("image_edit", PIXELS), latent_channels + MASK: ("inpainting", MASK)}
    if joined not in kinds:
        raise UserError(
            f"{where}: {joined} channels are concatenated to the latents; ldm supports {latent_channels + MASK} "
            f"(inpainting) and {latent_channels} (InstructPix2Pix)"
        )
    kind, channels = kinds[joined]
    tree = {"kind": kind, "in_channels": channels, "channels": joined}
    return {"spatial": parse(tree, SPATIAL[kind].section, where)}


def _clip(params: Group, joined: int) -> dict[str, Section]:
    version = params.take("version", "openai/clip-vit-large-patch14")
    if version not in CLIP_VERSIONS:
        raise refused(f"{params.where}.version", version)
    width, layers, heads = CLIP_VERSIONS[version]
    params.skip(*TRAINING)
    params.expect(max_length=POSITIONS)
    layer = params.choose("layer", {"last": "last", "hidden": "hidden"}, "last")
    index = params.take("layer_idx", None)
    tree: Params = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    if layer == "hidden":
        if index not in (layers - 1, -2):
            raise refused(f"{params.where}.layer_idx", index)
        tree |= PENULTIMATE
    return {"text": parse(tree, CLIPConfig, params.where)}


def _open_clip(params: Group, joined: int) -> dict[str, Section]:
    tree, penultimate = _open_clip_sizes(params), params.choose("layer", {"penultimate": True, "last": False}, "last")
    if not penultimate:  # its file has all the layers, each of which is used
        raise UserError(f"{params.where}.layer is 'last', which ldm cannot do: the released models are 'penultimate'")
    tree["num_hidden_layers"] -= 1
    return {"text": parse(tree, CLIPConfig, params.where)}


def _open_clip_pooled(params: Group, joined: int) -> dict[str, Section]:
    tree = _open_clip_sizes(params) | PENULTIMATE
    params.expect(layer="penultimate", always_return_pooled=True, legacy=False)
    return {"text": parse(tree | {"projection_dim": tree["hidden_size"]}, CLIPConfig, params.where)}


def _open_clip_sizes(params: Group) -> Params:
    (width, layers, heads), _ = params.choose("arch", OPEN_CLIP_VERSIONS, "ViT-H-14")
    params.skip(*TRAINING)
    params.expect(max_length=POSITIONS)
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {"hidden_act": "gelu", **sizes}


def _ldm_bert(params: Group, joined: int) -> dict[str, Section]:
    params.skip("device", "embedding_dropout")
    tree = {
        "hidden_size": params.number("n_embed"),
        "num_hidden_layers": params.number("n_layer"),
        "vocab_size": params.number("vocab_size", 30522),
        "max_length": params.number("max_seq_len", 77),
        "tokens": params.choose("use_tokenizer", {True: "words", False: "boxes"}, True),
    }
    return {"text": parse(tree, LDMBertConfig, params.where)}


def _classes(params: Group, joined: int) -> dict[str, Section]:
    params.skip("key")
    tree = {"hidden_size": params.number("embed_dim"), "num_classes": params.number("n_classes", 1000)}
    return {"classes": parse(tree, ClassesConfig, params.where)}


def _rescaler(params: Group, joined: int) -> dict[str, Section]:
    params.expect(method="bilinear", multiplier=0.5, bias=False)
    tree = {
        "stages": params.number("n_stages", 1),
        "in_channels": params.number("in_channels", 3),
        "channels": params.number("out_channels"),
    }
    return {"spatial": parse(tree, SegmentationMapConfig, params.where)}


def _identity(params: Group, joined: int) -> dict[str, Section]:
    tree = {"in_channels": joined, "channels": joined}
    return {"spatial": parse(tree, LowResolutionConfig, params.where)}


READERS: dict[str, Callable[[Group, int], dict[str, Section]]] = {
    "BERTEmbedder": _ldm_bert,
    "ClassEmbedder": _classes,
    "FrozenCLIPEmbedder": _clip,
    "FrozenOpenCLIPEmbedder": _open_clip,
    "FrozenOpenCLIPEmbedder2": _open_clip_pooled,
    "Identity": _identity,
    "SpatialRescaler": _rescaler,
}


def condition_to_target(config: Section, where: str) -> Params:
    """Return the target and its parameters.

    Raises:
        UserError: if the original has no class or no name for the sizes.
    """
    if type(config) not in WRITERS:
        raise UserError(f"{where}.kind {getattr(config, 'kind', '')}: CompVis files have no such condition stage")
    name, params = WRITERS[type(config)](config)
    return {"target": name if "." in name else f"{MODULES}.{name}", "params": params}


def _clip_to_params(config: CLIPConfig) -> tuple[str, Params]:
    if (config.max_length, config.vocab_size) != (POSITIONS, PIECES):
        raise inexpressible(
            "text.max_length and vocab_size", (config.max_length, config.vocab_size), (POSITIONS, PIECES)
        )
    layers = config.num_hidden_layers + drops_last_layer(config)
    sizes = (config.hidden_size, layers, config.num_attention_heads)
    if is_open_clip(config):
        return _open_clip_to_params(config, sizes)
    versions = {found: version for version, found in CLIP_VERSIONS.items()}
    if sizes not in versions:
        raise inexpressible("text", f"of width, layers and heads {sizes}", f"of {' or '.join(map(str, versions))}")
    params: Params = {"version": versions[sizes]}
    if config.layer == "penultimate" and not config.final_norm:
        return "FrozenCLIPEmbedder", params | {"layer": "hidden", "layer_idx": layers - 1}
    if config.layer == "last" and config.final_norm:
        return "FrozenCLIPEmbedder", params
    raise inexpressible("text.final_norm", config.final_norm, "true with layer last, false with layer penultimate")


def _open_clip_to_params(config: CLIPConfig | OpenCLIPConfig, sizes: Sizes) -> tuple[str, Params]:
    versions = {found: (arch, version) for arch, (found, version) in OPEN_CLIP_VERSIONS.items()}
    if sizes not in versions:
        raise inexpressible("text", f"of width, layers and heads {sizes}", f"of {' or '.join(map(str, versions))}")
    arch, version = versions[sizes]
    params = {"arch": arch, "version": version, "freeze": True, "layer": "penultimate"}
    if config.final_norm and config.projection_dim is None:
        return "FrozenOpenCLIPEmbedder", params
    if not config.final_norm and config.projection_dim is not None and config.layer == "penultimate":
        return "FrozenOpenCLIPEmbedder2", params | {"always_return_pooled": True, "legacy": False}
    raise inexpressible("text.final_norm", config.final_norm, "false with a projection_dim, true without")


def _open_clip_model_to_params(config: OpenCLIPConfig) -> tuple[str, Params]:
    if config.layer != "penultimate":
        raise inexpressible("text.layer", config.layer, "penultimate")
    return _open_clip_to_params(config, (config.hidden_size, config.num_hidden_layers, config.num_attention_heads))


def _ldm_bert_to_params(config: LDMBertConfig) -> tuple[str, Params]:
    if (config.num_attention_heads, config.head_width) != (8, 64):
        raise inexpressible(
            "text.num_attention_heads and head_width", (config.num_attention_heads, config.head_width), (8, 64)
        )
    params: Params = {
        "n_embed": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "vocab_size": config.vocab_size,
        "max_seq_len": config.max_length,
    }
    return "BERTEmbedder", params | ({} if config.tokens == "words" else {"use_tokenizer": False})


def _classes_to_params(config: ClassesConfig) -> tuple[str, Params]:
    return "ClassEmbedder", {"embed_dim": config.hidden_size, "n_classes": config.num_classes, "key": "class_label"}


def _segmentation_map_to_params(config: SegmentationMapConfig) -> tuple[str, Params]:
    sizes = {"n_stages": config.stages, "in_channels": config.in_channels, "out_channels": config.channels}
    return "SpatialRescaler", sizes


WRITERS: dict[type[Section], Callable[[Any], tuple[str, Params]]] = {
    CLIPConfig: _clip_to_params,
    OpenCLIPConfig: _open_clip_model_to_params,
    LDMBertConfig: _ldm_bert_to_params,
    ClassesConfig: _classes_to_params,
    SegmentationMapConfig: _segmentation_map_to_params,
    LowResolutionConfig: lambda config: ("torch.nn.Identity", {}),
}
