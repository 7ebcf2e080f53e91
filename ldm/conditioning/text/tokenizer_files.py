"""Tokenizers <-> their folders in the layout of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers

from ldm.conditioning.text.tokenizers import CLIP_BRACKETS, SPECIAL_TOKENS, Tokenizer, byte_pairs, word_pieces
from ldm.errors import UserError
from ldm.storage.fields import Fields, Fixed, check_fixed, load_fields
from ldm.storage.store import load_json, load_text, save_json, save_text

_BERT_NAMES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
_BERT_OPTIONS = {  # of the class of transformers -> of the normalizer
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
# Ends at which texts are padded and cut; ours is the one of all published text encoders.
_FIXED: Fixed = {"padding_side": ("right",), "truncation_side": ("right",)}


@dataclass(frozen=True)
class Family:
    """Tokenizers of one kind of vocabulary: what transformers calls them and what files they have."""

    name: str
    special: dict[str, str]
    read: Callable[[Path], tokenizers.Tokenizer] | None  # from the files beside `tokenizer.json`
    files: Callable[[Fields], dict[str, str]]  # from the model in `tokenizer.json`


def load_tokenizer(folder: Path, max_length: int | None = None) -> Tokenizer:
    """Load a tokenizer from a folder with `tokenizer_config.json` and its vocabulary.

    `max_length` takes the place of the folder's own. Padding is with the token that the folder names.
    """
    fields = _special_fields(folder)
    check_fixed(fields, _FIXED, folder / "tokenizer_config.json")
    length = max_length or fields.get("model_max_length")
    if not isinstance(length, int) or not 2 <= length < 2**20:  # transformers writes 1e30 for "none"
        raise UserError(f"{folder / 'tokenizer_config.json'} has no model_max_length: give it the number of tokens")
    tokenizer = _read(folder, fields)
    family = _family(tokenizer, folder)
    try:
        if family is WORD_PIECE:
            _follow_options(tokenizer, fields)
        _add_tokens(tokenizer, fields, folder)
        return Tokenizer(tokenizer, length, _content(fields.get("pad_token")) or family.special["pad_token"])
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: tokenizer_config.json and the vocabulary do not fit together: {error}") from error


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer that transformers' class of the same family and its AutoTokenizer load as well."""
    content = json.loads(tokenizer.to_json())
    family = FAMILIES[content["model"]["type"]]
    special = family.special | {"pad_token": tokenizer.pad_token}
    fields = {"tokenizer_class": family.name, "model_max_length": tokenizer.max_length, **special}
    if family is WORD_PIECE:
        fields |= {theirs: content["normalizer"][ours] for theirs, ours in _BERT_OPTIONS.items()}
    for name, text in family.files(content["model"]).items():
        save_text(folder / name, text)
    save_text(folder / "tokenizer.json", tokenizer.to_json())
    save_json(folder / "special_tokens_map.json", special)
    save_json(folder / "tokenizer_config.json", fields)


def tokenizer_class(tokenizer: Tokenizer) -> str:
    """Return the class of transformers that loads what `save_tokenizer` writes."""
    return FAMILIES[json.loads(tokenizer.to_json())["model"]["type"]].name


def _special_fields(folder: Path) -> Fields:
    """Read `tokenizer_config.json`, completed by `special_tokens_map.json` of older versions."""
    fields = load_fields(folder / "tokenizer_config.json")
    path = folder / "special_tokens_map.json"
    if "added_tokens_decoder" not in fields and path.is_file():
        return fields | load_fields(path)
    return fields


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _read(folder: Path, fields: Fields) -> tokenizers.Tokenizer:
    whole = folder / "tokenizer.json"
    if not whole.is_file():
        for family in FAMILIES.values():
            if fields.get("tokenizer_class") in (family.name, f"{family.name}Fast") and family.read is not None:
                return family.read(folder)
        if (folder / "spiece.model").is_file():
            raise UserError(
                f"{folder} has its vocabulary as spiece.model alone: load it with transformers and save it, "
                "which makes tokenizer.json"
            )
    try:
        return tokenizers.Tokenizer.from_str(load_text(whole))
    except UserError:
        raise
    except Exception as error:  # the library raises nothing more special
        raise UserError(f"{whole} is no tokenizer: {error}") from error


def _family(tokenizer: tokenizers.Tokenizer, folder: Path) -> Family:
    kind = type(tokenizer.model).__name__
    if kind not in FAMILIES:
        raise UserError(f"{folder}: a vocabulary of kind {kind}; ldm reads {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def _follow_options(tokenizer: tokenizers.Tokenizer, fields: Fields) -> None:
    """Let what `tokenizer_config.json` says of letter case and accents rule, as in transformers."""
    given = {ours: fields[theirs] for theirs, ours in _BERT_OPTIONS.items() if theirs in fields}
    normalizer = tokenizer.normalizer
    if isinstance(normalizer, normalizers.BertNormalizer):
        for name, value in given.items():
            setattr(normalizer, name, value)


def _add_tokens(tokenizer: tokenizers.Tokenizer, fields: Fields, folder: Path) -> None:
    """Add the tokens that a folder lists beside its vocabulary, such as the words of textual inversion."""
    path = folder / "added_tokens.json"
    listed = {int(number): dict(token) for number, token in fields.get("added_tokens_decoder", {}).items()}
    if not listed and path.is_file():
        special = [_content(token) for name, token in fields.items() if name.endswith("_token")]
        listed = {
            number: {"content": token, "special": token in special} for token, number in load_fields(path).items()
        }
    for number, options in sorted(listed.items()):
        content = options.pop("content")
        known = {name: options[name] for name in options.keys() & {"single_word", "lstrip", "rstrip", "normalized"}}
        add = tokenizer.add_special_tokens if options.get("special") else tokenizer.add_tokens
        add([tokenizers.AddedToken(content, **known)])
        if tokenizer.token_to_id(content) != number:
            raise ValueError(f"{content!r} has number {number} there and {tokenizer.token_to_id(content)} here")


def _read_word_pieces(folder: Path) -> tokenizers.Tokenizer:
    pieces = load_text(folder / "vocab.txt").removesuffix("\n").split("\n")
    try:
        return word_pieces({piece: number for number, piece in enumerate(pieces)})
    except (KeyError, ValueError) as error:
        raise UserError(f"{folder / 'vocab.txt'} is not a BERT vocabulary: {error}") from error


def _read_byte_pairs(folder: Path) -> tokenizers.Tokenizer:
    lines = load_text(folder / "merges.txt").split("\n")
    pairs = [line.split() for line in lines if line and not line.startswith("#version")]
    try:
        return byte_pairs(load_json(folder / "vocab.json"), [(left, right) for left, right in pairs])
    except Exception as error:  # the library raises nothing more special
        raise UserError(f"{folder}: vocab.json and merges.txt are no vocabulary of a CLIP: {error!r}") from error


def _write_word_pieces(model: Fields) -> dict[str, str]:
    return {"vocab.txt": "".join(f"{piece}\n" for piece in sorted(model["vocab"], key=model["vocab"].__getitem__))}


def _write_byte_pairs(model: Fields) -> dict[str, str]:
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    return {
        "vocab.json": json.dumps(model["vocab"], ensure_ascii=False),
        "merges.txt": "".join(f"{line}\n" for line in ("#version: 0.2", *merges)),
    }


WORD_PIECE = Family(
    "BertTokenizer", dict(zip(_BERT_NAMES, SPECIAL_TOKENS, strict=True)), _read_word_pieces, _write_word_pieces
)
BYTE_PAIRS = Family(
    "CLIPTokenizer",
    {
        "bos_token": CLIP_BRACKETS[0],
        "eos_token": CLIP_BRACKETS[1],
        "unk_token": CLIP_BRACKETS[1],
        "pad_token": CLIP_BRACKETS[1],
    },
    _read_byte_pairs,
    _write_byte_pairs,
)
UNIGRAM = Family(
    "T5TokenizerFast",
    {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    None,
    lambda model: {},
)
FAMILIES = {"WordPiece": WORD_PIECE, "BPE": BYTE_PAIRS, "Unigram": UNIGRAM}
# Library and class of the tokenizers that can be loaded.
PARTS = tuple(
    ("transformers", family.name.removesuffix("Fast") + end) for family in FAMILIES.values() for end in ("", "Fast")
)
