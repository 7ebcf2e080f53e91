"""Remove metadata from image files that a decoder rejects because of it, and keep their pixels.

Profiles, texts and comments are optional parts of a file; a damaged or very large one says nothing about the pixels.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
PNG_KEPT = (b"tRNS", b"eXIf")  # of the optional chunks, those that change the pixels
JPEG_KEPT = re.compile(rb"\xff\xe0..JFIF\0.{9}|\xff\xee..Adobe.{7}|\xff\xe1..Exif\0\0", re.DOTALL)
WEBP_KEPT = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF")
WEBP_FLAGS = 0x20 | 0x08 | 0x04  # of VP8X: the file has a profile, EXIF and XMP
# Sizes, formats and places of pixels, colours, orientation.
TIFF_KEPT = {*range(254, 260), 262, 266, *range(273, 280), 284, 292, 293, 317, *range(320, 326), 338, 339, 347}
TIFF_KEPT |= set(range(512, 522)) | {529, 530, 532}


def without_metadata(content: bytes) -> bytes | None:
    """Return a PNG, JPEG, WebP or TIFF file without optional parts; None for other files."""
    if content.startswith(PNG):
        return PNG + b"".join(_png_chunks(content))
    if content.startswith(JPEG):
        return JPEG + b"".join(_jpeg_segments(content))
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        chunks = b"".join(_webp_chunks(content))
        return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks
    if content[:4] in (b"II*\0", b"MM\0*"):
        return _tiff(content)
    return None


def _png_chunks(content: bytes) -> Iterator[bytes]:
    """Chunks of the pixels; of those kept, none with a wrong checksum."""
    at = len(PNG)
    while at + 8 <= len(content):
        (size,), kind = struct.unpack_from(">I", content, at), content[at + 4 : at + 8]
        chunk = content[at : at + 12 + size]
        critical = not kind[0] & 0x20  # the case of the first letter
        if critical or (kind in PNG_KEPT and chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))):
            yield chunk
        at += 12 + size


def _jpeg_segments(content: bytes) -> Iterator[bytes]:
    """Segments before the first scan, without comments and most application data; then the rest of the file."""
    at = len(JPEG)
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0xDA:
        marker, (size,) = content[at + 1], struct.unpack_from(">H", content, at + 2)
        segment = content[at : at + 2 + size]
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or JPEG_KEPT.match(segment):
            yield segment
        at += 2 + size
    yield content[at:]


def _webp_chunks(content: bytes) -> Iterator[bytes]:
    at = 12
    while at + 8 <= len(content):
        kind, size = struct.unpack_from("<4sI", content, at)
        chunk = content[at : at + 8 + size + size % 2]
        if kind == b"VP8X":
            chunk = chunk[:8] + bytes([chunk[8] & ~WEBP_FLAGS]) + chunk[9:]
        if kind in WEBP_KEPT:
            yield chunk
        at += 8 + size + size % 2


def _tiff(content: bytes) -> bytes | None:
    """Return the file with a shorter list of fields in its first image."""
    order = "<" if content.startswith(b"II") else ">"
    try:
        (start,) = struct.unpack_from(f"{order}I", content, 4)
        (count,) = struct.unpack_from(f"{order}H", content, start)
        fields = [content[at : at + 12] for at in range(start + 2, start + 2 + 12 * count, 12)]
        kept = [field for field in fields if struct.unpack_from(f"{order}H", field)[0] in TIFF_KEPT]
    except struct.error:
        return None
    made = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)
    return content[:start] + made + content[start + len(made) :]
