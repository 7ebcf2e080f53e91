"""Text encoders <-> their folders in the layout of transformers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ldm.conditioning.text.bert import BertConfig
from ldm.conditioning.text.clip import CLIPConfig
from ldm.conditioning.text.encoder import TextEncoder, TextSection, make_text_encoder
from ldm.conditioning.text.format import text_from_fields, text_to_fields
from ldm.conditioning.text.open_clip import OpenCLIPConfig
from ldm.conditioning.text.open_clip_names import clip_config, clip_from_open_clip
from ldm.storage.fields import load_fields
from ldm.storage.store import save_json
from ldm.storage.weights import SHARD_SIZE, build, load_weights, save_weights

T = TypeVar("T")

TRANSFORMERS_STEM = "model"

# Names in files, of whole models and of old versions, that our networks have otherwise: pattern -> replacement.
RENAMED = {
    "bert": {r"^bert\.": "", r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"},
    "clip": {r"^(?=(embeddings|encoder|final_layer_norm)\.)": "text_model."},
    "t5": {r"^encoder\.embed_tokens\.": "shared."},
}
# What files hold besides, which the context does not pass through: other halves, heads, buffers of old versions.
UNUSED = {
    "bert": r"embeddings\.position_ids$|pooler\.|cls\.",
    "clip": r"vision_model\.|visual_projection\.|logit_scale$|text_model\.embeddings\.position_ids$",
    "t5": r"decoder\.|lm_head\.",
}
POSITIONS = (
    "embeddings.position_embeddings.weight",
    "model.embed_positions.weight",
    "text_model.embeddings.position_embedding.weight",
)


def load_text_config(folder: Path) -> TextSection:
    """The section that a text encoder's `config.json` describes; UserError for what cannot be had."""
    return text_from_fields(load_fields(folder / "config.json"), folder / "config.json")


def load_text_encoder(
    folder: Path, dtype: torch.dtype = torch.float32, config: TextSection | None = None
) -> TextEncoder:
    """A text encoder out of a folder that transformers wrote, or we; UserError if it is not whole.

    `config` takes the place of what its `config.json` says: another layer, no projection, fewer positions.
    """
    own = load_text_config(folder)
    config = config or own
    tensors = network_tensors(load_weights(folder, TRANSFORMERS_STEM), own.kind)
    for name in POSITIONS:
        if name in tensors and len(tensors[name]) == own.max_length:
            tensors[name] = tensors[name][: config.max_length]
    if isinstance(own, CLIPConfig) and own.projection_dim is not None and not getattr(config, "projection_dim", None):
        tensors.pop("text_projection.weight", None)
    return build(lambda: make_text_encoder(config), tensors, dtype, folder)


def network_tensors(tensors: dict[str, T], kind: str) -> dict[str, T]:
    """The weights of a file of transformers, or what its header says of them, under our network's names."""
    kept: dict[str, T] = {}
    renamed: dict[str, T] = {}
    for old, tensor in tensors.items():
        name = old
        for pattern, replacement in RENAMED.get(kind, {}).items():
            name = re.sub(pattern, replacement, name)
        if kind not in UNUSED or not re.match(UNUSED[kind], name):
            (kept if name == old else renamed)[name] = tensor
    return kept | renamed  # a T5 may hold a table of tokens for both its halves and one for the encoder, which rules


def save_text_encoder(
    encoder: TextEncoder, folder: Path, dtype: torch.dtype | None = None, shard_size: int = SHARD_SIZE
) -> None:
    """Write a text encoder as a class of transformers that gives the same context: `saved_config` says which."""
    config, tensors = saved_form(encoder)
    if isinstance(config, BertConfig):
        tensors |= _pooler(tensors["embeddings.LayerNorm.weight"])
    save_weights(folder, TRANSFORMERS_STEM, tensors, dtype, shard_size)
    save_json(folder / "config.json", text_to_fields(config))


def saved_form(encoder: TextEncoder) -> tuple[TextSection, dict[str, Tensor]]:
    """The section and the weights that a text encoder has when it comes back from its folder."""
    config, tensors = saved_config(encoder.config), encoder.state_dict()
    if isinstance(encoder.config, OpenCLIPConfig):
        tensors = clip_from_open_clip(tensors)
    if isinstance(config, CLIPConfig):
        tensors = {name: tensor for name, tensor in tensors.items() if _layer(name) < config.num_hidden_layers}
    return config, tensors


def saved_config(config: TextSection) -> TextSection:
    """The section that a text encoder has when it comes back from its folder.

    open_clip's is a CLIP. Where the context is the normalised output of the penultimate layer and nothing is pooled,
    the last layer goes, which nothing passes through: so are the folders of Stable Diffusion 2.
    """
    if isinstance(config, OpenCLIPConfig):
        config = clip_config(config)
    if isinstance(config, CLIPConfig) and _ends_before_last(config):
        return config.model_copy(update={"num_hidden_layers": config.num_hidden_layers - 1, "layer": "last"})
    return config


def _ends_before_last(config: CLIPConfig) -> bool:
    return config.layer == "penultimate" and config.final_norm and config.projection_dim is None


def _layer(name: str) -> int:
    found = re.search(r"encoder\.layers\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _pooler(like: Tensor) -> dict[str, Tensor]:
    """What transformers' BertModel wants besides; nothing here knows what it would be for, so it is zero."""
    width = len(like)
    return {"pooler.dense.weight": like.new_zeros(width, width), "pooler.dense.bias": like.new_zeros(width)}
