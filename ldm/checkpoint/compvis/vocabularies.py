"""Tokenizers of single files, which the original leaves to the libraries that it imports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.checkpoint.compvis.condition_rules import is_open_clip
from ldm.checkpoint.find import find_model
from ldm.conditioning.text.clip import CLIPConfig
from ldm.conditioning.text.encoder import TextSection
from ldm.conditioning.text.ldm_bert import LDMBertConfig
from ldm.conditioning.text.open_clip import OpenCLIPConfig
from ldm.conditioning.text.tokenizer_files import load_tokenizer, tokenizer_class
from ldm.conditioning.text.tokenizers import CLIP_BRACKETS, Tokenizer
from ldm.errors import UserError

TOKENIZERS = "ldm.tokenizers"  # in the header of a file of ours: those of its text encoders, as JSON
BERT = "google-bert/bert-base-uncased"  # whose pieces BERTEmbedder takes


def tokenizer_for(config: TextSection, source: str | None = None, part: str = "tokenizer") -> Tokenizer | None:
    """The tokenizer of a text encoder: that part of a pipeline, a folder or one of the Hub, or the original's.

    None for tokens that are no text. UserError where it cannot be had.
    """
    if isinstance(config, LDMBertConfig) and config.tokens == "boxes":
        return None
    if source is not None:
        return _given(source, part, config)
    if isinstance(config, CLIPConfig | OpenCLIPConfig):
        return _clip(config)
    try:
        return load_tokenizer(_folder(BERT, part), config.max_length)
    except UserError as error:
        raise UserError(
            f"the text encoder needs BERT's vocabulary ({error}): give its folder with --tokenizer"
        ) from None


def _given(source: str, part: str, config: TextSection) -> Tokenizer:
    tokenizer = load_tokenizer(_folder(source, part), config.max_length)
    found, wanted = (
        tokenizer_class(tokenizer),
        "BertTokenizer" if isinstance(config, LDMBertConfig) else "CLIPTokenizer",
    )
    if found != wanted:
        raise UserError(f"--tokenizer {source}: it holds a {found}, the text encoder knows the pieces of a {wanted}")
    return tokenizer


def _clip(config: CLIPConfig | OpenCLIPConfig) -> Tokenizer:
    """CLIP pads with the end of the text, open_clip with the piece of id 0."""
    tokenizer = Tokenizer.open_clip(config.max_length)
    if isinstance(config, OpenCLIPConfig) or is_open_clip(config):
        return tokenizer
    return Tokenizer.from_json(tokenizer.to_json(), config.max_length, CLIP_BRACKETS[1])


def is_usual(tokenizer: Tokenizer, config: TextSection) -> bool:
    """Whether a text encoder's tokenizer is the one that it gets where a file tells nothing of it."""
    if not isinstance(config, CLIPConfig | OpenCLIPConfig):
        return False
    usual = _clip(config)
    return (tokenizer.pieces, tokenizer.pad_token) == (usual.pieces, usual.pad_token)


def _folder(source: str, part: str) -> Path:
    """Of a tokenizer: its own, or that of a pipeline's part; only a pipeline has a second one."""
    folder = find_model(source)
    return folder / part if (folder / part).is_dir() or part != "tokenizer" else folder


def tokenizers_to_metadata(tokenizers: Mapping[str, Tokenizer]) -> dict[str, str]:
    """Tokenizers by the names of their sections, as an entry of a file's header."""
    if not tokenizers:
        return {}
    content = {
        name: {"max_length": found.max_length, "pad_token": found.pad_token, "tokenizer": found.to_json()}
        for name, found in tokenizers.items()
    }
    return {TOKENIZERS: json.dumps(content)}


def tokenizers_from_metadata(found: dict[str, str], where: str) -> dict[str, Tokenizer]:
    """The inverse; UserError where the entry is damaged."""
    try:
        content: dict[str, dict[str, Any]] = json.loads(found.get(TOKENIZERS, "{}"))
        return {
            name: Tokenizer.from_json(entry["tokenizer"], entry["max_length"], entry["pad_token"])
            for name, entry in content.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{where}: {TOKENIZERS} in its header is damaged ({error!r})") from None
