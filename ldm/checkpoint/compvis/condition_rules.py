"""The original condition stages: text encoders, the table of classes and the segmentation_map of maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from ldm.checkpoint.compvis.rules import SAME, TRANSPOSED, Filler, Rule, Rules, layer, layers, stacked
from ldm.conditioning.classes import ClassesConfig
from ldm.conditioning.segmentation_map import SegmentationMapConfig
from ldm.conditioning.text.clip import CLIPConfig
from ldm.conditioning.text.ldm_bert import LDMBertConfig
from ldm.conditioning.text.open_clip import OpenCLIPConfig
from ldm.config.section import Section
from ldm.errors import UserError

LOGIT_SCALE = math.log(100)  # where CLIP's training ends; it belongs to the loss
OPEN_CLIP_BLOCK = {  # open_clip's ResidualAttentionBlock and transformers' CLIPEncoderLayer
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
# What some files hold beside a text encoder: buffers, and weights of CLIP's loss, which no condition uses.
IGNORED = frozenset(
    (
        "logit_scale",
        "text_projection",
        "text_projection.weight",
        "transformer.logit_scale",
        "transformer.text_projection",
        "transformer.text_projection.weight",
        "transformer.text_model.embeddings.position_ids",
    )
)
IGNORED_IN_OPEN_CLIP = frozenset(
    (
        "logit_scale",
        "model.attn_mask",
        "model.text_model.embeddings.position_ids",
        "model.transformer.text_model.embeddings.position_ids",
    )
)
LDM_BERT_ATTENTION = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj"}


def condition_rules(config: Section, where: str) -> Rules:
    """Return the renaming rules of a text encoder, a class table or a segmentation map.

    Raises:
        UserError: if the original has no such conditioning.
    """
    make = MAKERS.get(type(config))
    if make is None:
        raise UserError(f"{where}.kind {getattr(config, 'kind', '')}: CompVis files have no such text encoder")
    return make(config)


def _clip(config: CLIPConfig) -> Rules:
    return _open_clip_names(config) if is_open_clip(config) else _transformers_names(config)


def is_open_clip(config: CLIPConfig) -> bool:
    """Return whether a text encoder is OpenCLIP's, which the original stores in a FrozenOpenCLIPEmbedder."""
    return config.hidden_act == "gelu"


def drops_last_layer(config: CLIPConfig) -> bool:
    """Return whether the file has one more layer: the original runs all layers of an OpenCLIP model but the last."""
    return is_open_clip(config) and config.layer == "last"


def _transformers_names(config: CLIPConfig) -> Rules:
    """FrozenCLIPEmbedder: transformers' CLIPTextModel, named as ours."""
    if config.projection_dim is not None:
        raise UserError(
            f"text.projection_dim {config.projection_dim}: a FrozenCLIPEmbedder of CompVis files has no projection"
        )
    return Rules(
        tuple(Rule((f"transformer.{rule.ours[0]}",), rule.ours, SAME) for rule in _clip_layers(config)),
        ignored=IGNORED,
    )


def _clip_layers(config: CLIPConfig) -> Iterator[Rule]:
    """Return the rules of all of CLIPTextModel, under its own names."""
    yield from layer("token_embedding", "text_model.embeddings.token_embedding", bias=False)
    yield from layer("position_embedding", "text_model.embeddings.position_embedding", bias=False)
    for index in range(config.num_hidden_layers):
        block = f"text_model.encoder.layers.{index}"
        yield from layers(block, block, {name: name for name in OPEN_CLIP_BLOCK.values()})
        yield from layers(block, block, {f"self_attn.{kind}_proj": f"self_attn.{kind}_proj" for kind in "qkv"})
    yield from layer("final_layer_norm", "text_model.final_layer_norm")


def _open_clip_names(config: CLIPConfig) -> Rules:
    """FrozenOpenCLIPEmbedder: a model of open_clip, whose queries, keys and values are one tensor."""
    width = config.hidden_size
    rules = list(_open_clip_rules(config))
    fillers = [Filler("model.logit_scale", (), LOGIT_SCALE)]
    if config.projection_dim is None:
        fillers.append(Filler("model.text_projection", (width, width)))
    else:
        rules.append(Rule(("model.text_projection",), ("text_projection.weight",), TRANSPOSED))
    if drops_last_layer(config):
        fillers += _unused_layer(config.num_hidden_layers, width, config.intermediate_size or 4 * width)
    return Rules(tuple(rules), tuple(fillers), IGNORED_IN_OPEN_CLIP)


def _open_clip_rules(config: CLIPConfig) -> Iterator[Rule]:
    yield from layer("model.token_embedding", "text_model.embeddings.token_embedding", bias=False)
    yield Rule(("model.positional_embedding",), ("text_model.embeddings.position_embedding.weight",), SAME)
    for index in range(config.num_hidden_layers):
        theirs, ours = f"model.transformer.resblocks.{index}", f"text_model.encoder.layers.{index}"
        yield from layers(theirs, ours, OPEN_CLIP_BLOCK)
        for kind in ("weight", "bias"):
            parts = tuple(f"{ours}.self_attn.{part}_proj.{kind}" for part in "qkv")
            yield Rule((f"{theirs}.attn.in_proj_{kind}",), parts, stacked(3))
    yield from layer("model.ln_final", "text_model.final_layer_norm")


def _unused_layer(index: int, width: int, inner: int) -> list[Filler]:
    """Return a layer that adds nothing to its input, since all its weights are zero."""
    shapes: dict[str, tuple[int, ...]] = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "mlp.c_fc.weight": (inner, width),
        "mlp.c_fc.bias": (inner,),
        "mlp.c_proj.weight": (width, inner),
    }
    vectors = (
        "attn.out_proj.bias",
        "mlp.c_proj.bias",
        *(f"ln_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")),
    )
    shapes |= dict.fromkeys(vectors, (width,))
    return [Filler(f"model.transformer.resblocks.{index}.{name}", shape) for name, shape in shapes.items()]


def _open_clip(config: OpenCLIPConfig) -> Rules:
    """FrozenOpenCLIPEmbedder, named as ours."""
    names = [f"{name}.{kind}" for name in OPEN_CLIP_BLOCK for kind in ("weight", "bias")]
    names += ["attn.in_proj_weight", "attn.in_proj_bias"]
    blocks = [f"transformer.resblocks.{index}.{name}" for index in range(config.num_hidden_layers) for name in names]
    whole = ["token_embedding.weight", "positional_embedding", "ln_final.weight", "ln_final.bias", *blocks]
    fillers = [Filler("model.logit_scale", (), LOGIT_SCALE)]
    if config.projection_dim is None:
        fillers.append(Filler("model.text_projection", (config.hidden_size, config.hidden_size)))
    else:
        whole.append("text_projection")
    return Rules(tuple(Rule((f"model.{name}",), (name,), SAME) for name in whole), tuple(fillers))


def _ldm_bert(config: LDMBertConfig) -> Rules:
    """BERTEmbedder: a TransformerWrapper whose layers are attention and feed-forward in turn."""
    return Rules(tuple(_ldm_bert_rules(config)))


def _ldm_bert_rules(config: LDMBertConfig) -> Iterator[Rule]:
    yield from layer("transformer.token_emb", "model.embed_tokens", bias=False)
    yield from layer("transformer.pos_emb.emb", "model.embed_positions", bias=False)
    for index in range(config.num_hidden_layers):
        attention, feed_forward = (f"transformer.attn_layers.layers.{2 * index + half}" for half in (0, 1))
        ours = f"model.layers.{index}"
        for their_name, our_name in LDM_BERT_ATTENTION.items():
            yield from layer(f"{attention}.1.{their_name}", f"{ours}.self_attn.{our_name}", bias=False)
        yield from layers(attention, ours, {"0": "self_attn_layer_norm", "1.to_out": "self_attn.out_proj"})
        yield from layers(feed_forward, ours, {"0": "final_layer_norm", "1.net.0.0": "fc1", "1.net.2": "fc2"})
    yield from layer("transformer.norm", "model.layer_norm")
    yield from layer("transformer.to_logits", "to_logits")


def _classes(config: ClassesConfig) -> Rules:
    """ClassEmbedder."""
    return Rules(tuple(layer("embedding", "embedding", bias=False)))


def _spatial(config: SegmentationMapConfig) -> Rules:
    """SpatialRescaler."""
    return Rules(tuple(layer("channel_mapper", "channel_mapper", bias=False)))


MAKERS: dict[type[Section], Callable[[Any], Rules]] = {
    CLIPConfig: _clip,
    OpenCLIPConfig: _open_clip,
    LDMBertConfig: _ldm_bert,
    ClassesConfig: _classes,
    SegmentationMapConfig: _spatial,
}
