"""Tokenizers of single files; the original takes them from the libraries that it imports."""

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

TOKENIZERS = "ldm.tokenizers"  # key in the header of our files: tokenizers as JSON
BERT = "google-bert/bert-base-uncased"  # the vocabulary of BERTEmbedder


def tokenizer_for(config: TextSection, source: str | None = None, part: str = "tokenizer") -> Tokenizer | None:
    """Load the tokenizer of a text encoder, by default the original's; None for tokens that are not text.

    Args:
        source: a pipeline, a tokenizer's folder, or a Hub id.
        part: the tokenizer's folder in a pipeline.

    Raises:
        UserError: if it is unavailable, or of another kind than the text encoder needs.
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
        raise UserError(f"--tokenizer {source}: it holds a {found}, but the text encoder needs a {wanted}")
    return tokenizer


def _clip(config: CLIPConfig | OpenCLIPConfig) -> Tokenizer:
    """Return CLIP's tokenizer; CLIP pads with the end-of-text token, open_clip with token 0."""
    tokenizer = Tokenizer.open_clip(config.max_length)
    if isinstance(config, OpenCLIPConfig) or is_open_clip(config):
        return tokenizer
    return Tokenizer.from_json(tokenizer.to_json(), config.max_length, CLIP_BRACKETS[1])


def is_usual(tokenizer: Tokenizer, config: TextSection) -> bool:
    """Return whether a tokenizer equals the default one of its text encoder and need not be stored."""
    if not isinstance(config, CLIPConfig | OpenCLIPConfig):
        return False
    usual = _clip(config)
    return (tokenizer.pieces, tokenizer.pad_token) == (usual.pieces, usual.pad_token)


def _folder(source: str, part: str) -> Path:
    """Find the folder of a tokenizer: `source` itself, or a part of the pipeline in it."""
    folder = find_model(source)
    return folder / part if (folder / part).is_dir() or part != "tokenizer" else folder


def tokenizers_to_metadata(tokenizers: Mapping[str, Tokenizer]) -> dict[str, str]:
    """Convert tokenizers by the names of their sections to an entry of a file's header."""
    if not tokenizers:
        return {}
    content = {
        name: {"max_length": found.max_length, "pad_token": found.pad_token, "tokenizer": found.to_json()}
        for name, found in tokenizers.items()
    }
    return {TOKENIZERS: json.dumps(content)}


def tokenizers_from_metadata(found: dict[str, str], where: str) -> dict[str, Tokenizer]:
    """Convert the tokenizer entry in a file's header to tokenizers.

    Raises:
        UserError: if it is damaged.
    """
    try:
        content: dict[str, dict[str, Any]] = json.loads(found.get(TOKENIZERS, "{}"))
        return {
            name: Tokenizer.from_json(entry["tokenizer"], entry["max_length"], entry["pad_token"])
            for name, entry in content.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{where}: {TOKENIZERS} in its header is damaged ({error!r})") from None
