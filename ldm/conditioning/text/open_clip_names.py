"""open_clip's text tower <-> the same weights as transformers' CLIP names them.

open_clip holds queries, keys and values of a layer as one matrix, one above the other, and the projection of the pooled
text transposed: (D, P) instead of (P, D).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

PROJECTION = "text_projection"
_ENDS = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    PROJECTION: "text_projection.weight",
}
_LAYER = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def clip_names(layers: int) -> dict[str, tuple[str, ...]]:
    """Return CLIP's names for each open_clip name of a tower of `layers`: three for joined queries, keys and values."""
    names: dict[str, tuple[str, ...]] = {theirs: (ours,) for theirs, ours in _ENDS.items()}
    for number in range(layers):
        theirs, ours = f"transformer.resblocks.{number}", f"text_model.encoder.layers.{number}"
        for kind in ("weight", "bias"):
            joined = tuple(f"{ours}.self_attn.{letter}_proj.{kind}" for letter in "qkv")
            names[f"{theirs}.attn.in_proj_{kind}"] = joined
            names |= {f"{theirs}.{old}.{kind}": (f"{ours}.{new}.{kind}",) for old, new in _LAYER.items()}
    return names


def count_layers(names: Iterable[str]) -> int:
    """Return number of layers of the tower that has these weights, in either naming."""
    found = (re.search(r"\b(?:resblocks|encoder\.layers)\.(\d+)\.", name) for name in names)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def clip_from_open_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of an open_clip text tower under CLIP's names; KeyError for one that no tower has."""
    names = clip_names(count_layers(tensors))
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = (tensor.T,) if name == PROJECTION else tensor.chunk(len(names[name]))
        made |= dict(zip(names[name], parts, strict=True))
    return made
