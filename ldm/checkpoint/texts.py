"""Text encoders and tokenizers <-> their folders in the layout of transformers."""

from __future__ import annotations

from pathlib import Path

import torch

from ldm.checkpoint.fields import load_fields
from ldm.checkpoint.store import load_text, save_json, save_text
from ldm.checkpoint.text_fields import text_from_fields, text_to_fields
from ldm.checkpoint.weights import SHARD_SIZE, build, load_weights, save_weights
from ldm.errors import UserError
from ldm.models.text import SPECIAL_TOKENS, BertTextEncoder, Tokenizer

TRANSFORMERS_STEM = "model"


def load_text_encoder(folder: Path, dtype: torch.dtype = torch.float32) -> BertTextEncoder:
    """A text encoder out of a folder that transformers wrote, or we; UserError if it is not whole."""
    config = text_from_fields(load_fields(folder / "config.json"), folder / "config.json")
    tensors = load_weights(folder, TRANSFORMERS_STEM)
    # Buffers of old versions, and the pooler, which the context does not pass through.
    tensors = {name: t for name, t in tensors.items() if not name.startswith(("embeddings.position_ids", "pooler."))}
    return build(lambda: BertTextEncoder(config), tensors, dtype, folder)


def save_text_encoder(
    text_encoder: BertTextEncoder, folder: Path, dtype: torch.dtype | None = None, shard_size: int = SHARD_SIZE
) -> None:
    """Write a text encoder as transformers' BertModel, which wants a pooler: it gets one of zeros."""
    width = text_encoder.config.hidden_size
    tensors = text_encoder.state_dict()
    like = tensors["embeddings.LayerNorm.weight"]
    pooler = {"pooler.dense.weight": like.new_zeros(width, width), "pooler.dense.bias": like.new_zeros(width)}
    save_weights(folder, TRANSFORMERS_STEM, tensors | pooler, dtype, shard_size)
    save_json(folder / "config.json", text_to_fields(text_encoder.config))


def load_tokenizer(folder: Path) -> Tokenizer:
    """A tokenizer out of a folder with `tokenizer.json` and `tokenizer_config.json`; UserError if it is not whole."""
    max_length = load_fields(folder / "tokenizer_config.json").get("model_max_length")
    if not isinstance(max_length, int) or not 2 <= max_length < 2**20:  # transformers writes 1e30 for "none"
        raise UserError(f"{folder / 'tokenizer_config.json'} has no model_max_length: give it the number of tokens")
    try:
        return Tokenizer.from_json(load_text(folder / "tokenizer.json"), max_length)
    except ValueError as error:
        raise UserError(f"{folder / 'tokenizer.json'} is no tokenizer: {error}") from error


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer that transformers' BertTokenizer and AutoTokenizer load as well."""
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    fields = {
        "tokenizer_class": "BertTokenizer",
        "model_max_length": tokenizer.max_length,
        "do_lower_case": True,
        **dict(zip(names, SPECIAL_TOKENS, strict=True)),
    }
    save_text(folder / "vocab.txt", "\n".join(tokenizer.pieces) + "\n")
    save_text(folder / "tokenizer.json", tokenizer.to_json())
    save_json(folder / "tokenizer_config.json", fields)
