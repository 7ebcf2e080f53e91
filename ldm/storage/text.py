"""Read text that people wrote, in any Unicode encoding that says which it is."""

from __future__ import annotations

import codecs
from pathlib import Path

from ldm.errors import UserError

# The longer marks first: UTF-32's begins with UTF-16's.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode_text(content: bytes, name: str) -> str:
    """Decode UTF-8, or the encoding that a byte order mark names, without the mark.

    Raises:
        UserError: for any other encoding.
    """
    encoding = next((encoding for mark, encoding in MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        found = f"byte 0x{content[error.start]:02X} at position {error.start:,}"
        raise UserError(f"{name} is not in UTF-8 ({found}): save it as UTF-8") from None


def read_text(path: Path) -> str:
    """Read a text file; see `decode_text`.

    Raises:
        UserError: if it cannot be read or decoded.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    return decode_text(content, str(path))
