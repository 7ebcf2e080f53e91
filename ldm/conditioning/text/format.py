"""`config.json` of text encoders in the layout of transformers <-> sections of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import UserError
from ldm.registry import TEXT_ENCODERS
from ldm.storage.fields import Fields, Fixed

if TYPE_CHECKING:
    from ldm.conditioning.text.encoder import TextEncoder, TextSection


@dataclass(frozen=True)
class Format:
    """How a class of transformers writes one kind of text encoder.

    Fields in no table (dropout, initialisation, other heads) do not affect the encoder's output and are ignored.
    """

    model_types: tuple[str, ...]  # the one that is written, then others that are read
    architecture: str
    names: Mapping[str, str]  # ours -> theirs
    defaults: Fields = field(default_factory=dict)  # of fields that a file lacks; all other names are required
    fixed: Fixed = field(default_factory=dict)
    feed_forward: str | None = None  # a width that must be four times the tokens'
    noted: Fields = field(default_factory=dict)  # options that only we have, with their usual values
    written: Fields = field(default_factory=dict)  # further fields that are written and not read
    renamed: Mapping[str, str] = field(default_factory=dict)  # names of weights in older files: pattern -> replacement
    unused: str | None = None  # pattern of weights that the context does not depend on


def encoder_class(section: TextSection) -> type[TextEncoder]:
    """Return the class of a section's encoder."""
    encoder: type[TextEncoder] = TEXT_ENCODERS[section.kind]
    return encoder


def text_to_fields(section: TextSection) -> Fields:
    """Return `config.json` of a text encoder."""
    return encoder_class(section).to_fields(section)


def text_from_fields(fields: Fields, where: Path) -> TextSection:
    """Return the section of a `config.json`.

    Raises:
        UserError: for an unsupported kind or field.
    """
    model_type: Any = fields.get("model_type")
    for encoder in TEXT_ENCODERS.values():
        if model_type in encoder.model_types():
            found: TextSection = encoder.from_fields(fields, where)
            return found
    known = ", ".join(types[0] for encoder in TEXT_ENCODERS.values() if (types := encoder.model_types()))
    raise UserError(f"{where}: the field model_type is {model_type!r}; ldm loads {known}")
