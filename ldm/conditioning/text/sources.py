"""Text encoders taken from a `source`: a folder, a model of the Hub, or weights of open_clip."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from ldm.checkpoint.hub import fetch
from ldm.conditioning.text.encoder import TextEncoder, TextSection
from ldm.conditioning.text.files import load_text_config, load_text_encoder
from ldm.conditioning.text.open_clip import OpenCLIPConfig, architecture_sizes
from ldm.conditioning.text.open_clip_files import load_open_clip
from ldm.conditioning.text.t5 import T5Config
from ldm.conditioning.text.tokenizer_files import load_tokenizer
from ldm.conditioning.text.tokenizers import Tokenizer
from ldm.errors import UserError

# What a section says about the use of its encoder; all else is architecture, which is the source's.
USE = {"kind", "source", "frozen", "max_length", "use_attention_mask", "projection_dim", "layer", "final_norm"}


def source_config(config: TextSection) -> TextSection:
    """Read the section of a source."""
    if isinstance(config, OpenCLIPConfig):
        return config.model_copy(update=dict(architecture_sizes(config)))
    return load_text_config(_folders(config)[0])


def adopt(config: TextSection, own: TextSection) -> TextSection:
    """Return a section with the architecture `own` of its source."""
    if type(own) is not type(config):
        raise UserError(f"text.kind is {config.kind}, the encoder of text.source {config.source} is a {own.kind}")
    found = {name: value for name, value in own if name not in USE} | _use(config, own)
    wrong = [
        f"text.{name} is {getattr(config, name)}, there {value}"
        for name, value in found.items()
        if name in config.model_fields_set and getattr(config, name) != value
    ]
    if wrong:
        raise UserError(f"text.source {config.source} is another encoder than the configuration's: {'; '.join(wrong)}")
    return config.model_copy(update=found)


def load_source(config: TextSection, dtype: torch.dtype = torch.float32) -> tuple[TextEncoder, Tokenizer]:
    """Load the encoder of a complete section, and its tokenizer.

    Raises:
        UserError: if one of them is not whole.
    """
    if isinstance(config, OpenCLIPConfig):
        return load_open_clip(config, dtype), Tokenizer.open_clip(config.max_length)
    encoder, tokenizer = _folders(config)
    return load_text_encoder(encoder, dtype, config), load_tokenizer(tokenizer, config.max_length)


def _use(config: TextSection, own: TextSection) -> dict[str, Any]:
    """Return the options of use that a source decides: those that are not given or that it does not support."""
    found: dict[str, Any] = {}
    given = config.model_fields_set
    if not isinstance(config, T5Config) and config.max_length > own.max_length:
        found["max_length"] = own.max_length  # it has no more positions
    if getattr(config, "projection_dim", None) is not None:
        found["projection_dim"] = getattr(own, "projection_dim", None)
    whose = {name: value for name, value in own if name in ("layer", "final_norm")}
    return found | {name: value for name, value in whose.items() if name not in given}


def _folders(config: TextSection) -> tuple[Path, Path]:
    """Return the folders of the encoder and of its tokenizer: the same folder, or two of a pipeline."""
    root = _find(config.source or "")
    encoder = next((place for place in (root, root / "text_encoder", root / "bert") if _has(place, "config")), root)
    beside = root.parent / root.name.replace("text_encoder", "tokenizer")
    places = (root, root / "tokenizer", beside)
    return encoder, next((place for place in places if _has(place, "tokenizer_config")), root)


def _has(folder: Path, name: str) -> bool:
    return (folder / f"{name}.json").is_file()


def _find(source: str) -> Path:
    """Find a local folder or the folder of a model on the Hub."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise UserError(f"text.source {source}: there is no such folder, and it is no name of a model of the Hub")
    try:
        return fetch(source)
    except UserError as error:
        raise UserError(f"text.source: {error}") from error
