"""Text encoders <-> their folders in the layout of transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ldm.conditioning.text.encoder import TextEncoder, TextSection, make_text_encoder
from ldm.conditioning.text.format import encoder_class, text_from_fields, text_to_fields
from ldm.storage.fields import load_fields
from ldm.storage.store import save_json
from ldm.storage.weights import SHARD_SIZE, build, load_weights, save_weights

STEM = "model"
POSITIONS = (
    "embeddings.position_embeddings.weight",
    "model.embed_positions.weight",
    "text_model.embeddings.position_embedding.weight",
)


def load_text_config(folder: Path) -> TextSection:
    """Return the section of a folder's `config.json`.

    Raises:
        UserError: for an unsupported one.
    """
    return text_from_fields(load_fields(folder / "config.json"), folder / "config.json")


def load_text_encoder(
    folder: Path, dtype: torch.dtype = torch.float32, config: TextSection | None = None
) -> TextEncoder:
    """Load a text encoder that transformers or `save_text_encoder` wrote; raise UserError if it is incomplete.

    `config` replaces what `config.json` says: another layer, no projection, fewer positions.
    """
    own = load_text_config(folder)
    config = config or own
    tensors = encoder_class(own).network_tensors(load_weights(folder, STEM))
    for name in POSITIONS:
        if name in tensors and len(tensors[name]) == own.max_length:
            tensors[name] = tensors[name][: config.max_length]
    if getattr(own, "projection_dim", None) is not None and getattr(config, "projection_dim", None) is None:
        tensors.pop("text_projection.weight", None)
    return build(lambda: make_text_encoder(config), tensors, dtype, folder)


def save_text_encoder(
    encoder: TextEncoder, folder: Path, dtype: torch.dtype | None = None, shard_size: int = SHARD_SIZE
) -> None:
    """Write a text encoder as the class of transformers that gives the same context."""
    config, tensors = saved_form(encoder)
    save_weights(folder, STEM, tensors | encoder.extra_tensors(), dtype, shard_size)
    save_json(folder / "config.json", text_to_fields(config))


def saved_form(encoder: TextEncoder) -> tuple[TextSection, dict[str, Tensor]]:
    """Return the section and the weights that an encoder has when it is loaded from its folder again."""
    return saved_config(encoder.config), encoder.saved_tensors()


def saved_config(config: TextSection) -> TextSection:
    """Return the section that an encoder has when it is loaded from its folder again."""
    return encoder_class(config).saved_section(config)


def part_of(config: TextSection) -> tuple[str, str]:
    """Return library and class of a saved encoder, as `model_index.json` names them."""
    return encoder_class(config).part(config)
