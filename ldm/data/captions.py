"""The captions of an image: in a text file, a JSON file or the columns of a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ldm.errors import UserError
from ldm.storage.text import decode_text

# Names of caption fields in any case; the first that exists is used if no field is configured.
USUAL = ("captions", "text", "caption", "prompt", "description", "alt_text", "alt")
TEXT_SUFFIXES = (".txt", ".caption")  # of files with captions, one per line


def choose_fields(columns: Iterable[str], asked: tuple[str, ...], data: str) -> tuple[str, ...]:
    """Return the caption fields of a table with these columns.

    Raises:
        UserError: if one that is asked for is missing.
    """
    columns = list(columns)
    missing = [field for field in columns_of(columns, asked) if field not in columns]
    if missing:
        raise UserError(f"data {data!r} has no field {missing[0]!r} (data.caption_fields), only {', '.join(columns)}")
    return asked or usual_field(columns)


def usual_field(names: Iterable[str]) -> tuple[str, ...]:
    """Return the first name of `USUAL` among field names, in the same case; () if there is none."""
    found = {name.strip().lower(): name for name in reversed(list(names))}
    return tuple(found[name] for name in USUAL if name in found)[:1]


def columns_of(columns: Iterable[str], fields: tuple[str, ...]) -> list[str]:
    """Return the columns of a table that hold the caption fields."""
    columns = list(columns)
    return list(dict.fromkeys(field if field in columns else field.split(".")[0] for field in fields))


def of_record(record: Mapping[str, Any], fields: tuple[str, ...]) -> list[str]:
    """Return the captions in the fields of a row or JSON object; a field holds one text or a list."""
    found = [_value(record, field) for field in fields]
    several = [text for value in found for text in (value if isinstance(value, list) else [value])]
    return [str(text) for text in several if text is not None and str(text).strip()]


def of_contents(text: bytes | None, record: bytes | None, asked: tuple[str, ...]) -> list[str]:
    """Read the captions of a `.json` or else of a `.txt` (one a line) with an image, [""] without any.

    Raises:
        ValueError: for text that is not UTF-8 or not a JSON object, and for missing fields that are asked for.
    """
    try:
        decoded = None if text is None else decode_text(text, "its caption")
        return _of_sidecars(decoded, None if record is None else _parse_record(record), asked)
    except UserError as error:
        raise ValueError(str(error)) from error


def field_of(record: bytes | None, field: str) -> Any:
    """Return the value of a field of a `.json`, None if it is missing; ValueError if it is not a JSON object."""
    return None if record is None else _value(_parse_record(record), field)


def _of_sidecars(text: str | None, record: Mapping[str, Any] | None, asked: tuple[str, ...]) -> list[str]:
    if record is not None:
        fields = asked or usual_field(record)
        captions = of_record(record, fields)
        if captions:
            return captions
    if asked:
        raise ValueError(f"it has no caption in {', '.join(asked)} (data.caption_fields)")
    lines = [] if text is None else [line.strip() for line in text.splitlines()]
    return [line for line in lines if line] or [""]


def _parse_record(content: bytes) -> Mapping[str, Any]:
    try:
        record = json.loads(decode_text(content, "its .json"))
    except json.JSONDecodeError as error:
        raise ValueError(f"its .json is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError("its .json is not an object")
    return record


def _value(record: Any, field: str) -> Any:
    """Return the value at a dotted path; text on the path is parsed as JSON."""
    if isinstance(record, Mapping) and field in record:
        return record[field]
    for part in field.split("."):
        if isinstance(record, str):
            record = json.loads(record)
        record = record.get(part) if isinstance(record, Mapping) else None
    return record
