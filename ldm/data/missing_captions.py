"""Detect data whose captions are missing, on which a text model would train without learning its prompts."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from ldm.data.broken import UnreadableError
from ldm.data.images import IMAGE_SUFFIXES
from ldm.data.sources import Source
from ldm.data.walk import walk
from ldm.errors import UserError, UserNote

CHECKED = 256  # samples, spread over the data
EXAMPLES = 3


def require_captions(source: Source) -> None:
    """Check that the data of a text model has captions, in samples spread over it.

    Issue a note if some of the samples have none.

    Raises:
        UserError: if no sample has a caption; names the likely cause.
    """
    captioned, missing = 0, []
    for item in source.spread(CHECKED):
        try:
            texts = source.captions(item)
        except UnreadableError:
            continue
        if any(text.strip() for text in texts):
            captioned += 1
        else:
            missing.append(_name(source.name_of, item))
    total = captioned + len(missing)
    if missing and not captioned:
        raise UserError(
            f"the model is conditioned on text, but none of {total} images of {source.name} that were checked has a "
            f"caption: {likely_cause(source)}"
        )
    if missing:
        some = ", ".join(missing[:EXAMPLES])
        note = f"{len(missing)} of {total} images that were checked have no caption, for example {some}"
        warnings.warn(note, UserNote, stacklevel=2)


def likely_cause(source: Source) -> str:
    """Return where captions were looked for, and what there is instead."""
    folder = Path(source.name)
    if not folder.is_dir():
        return "name the column or the JSON field with captions in data.caption_fields"
    files = [PurePosixPath(name) for name in walk(folder).files]
    others = Counter(file.suffix.lower() for file in files if file.suffix.lower() not in IMAGE_SUFFIXES)
    tables = [str(file) for file in files if file.suffix.lower() in (".csv", ".jsonl", ".tsv", ".xlsx")]
    wanted = "write image.txt next to image.png, or metadata.jsonl with the fields file_name and text"
    if ".json" in others:
        return f"the .json files have no usual field: name theirs in data.caption_fields, or {wanted}"
    if tables and PurePosixPath(tables[0]).stem != "metadata":
        return f"{tables[0]} is not read: rename it to metadata{PurePosixPath(tables[0]).suffix}, or {wanted}"
    if tables:
        return f"{tables[0]} has no usual column: name its column in data.caption_fields, or {wanted}"
    found = ", ".join(f"{count} {suffix or 'files without a suffix'}" for suffix, count in others.most_common(3))
    return f"{wanted} (other files there: {found or 'none'})"


def _name(name_of: Callable[[Any], str], item: Any) -> str:
    return PurePosixPath(name_of(item)).name
