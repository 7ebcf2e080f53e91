"""Malformed and unusual image files: readable and unreadable ones."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def noise(size: tuple[int, int] = (48, 40), seed: int = 0) -> Image.Image:
    """Return an image of noise, whose file is large enough to truncate."""
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """Encode an image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_of(width: int, height: int) -> bytes:
    """Return a small PNG with the header of a `width` x `height` image: a decompression bomb."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def unreadable() -> dict[str, bytes]:
    """Return the contents of unreadable image files by name."""
    png, jpeg = encoded(noise(), "PNG"), encoded(noise(), "JPEG", quality=95)
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    return {
        "zero_bytes.png": b"",
        "truncated.png": png[: len(png) // 2],
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "truncated.webp": encoded(noise(), "WEBP")[:200],
        "truncated.gif": encoded(noise(), "GIF")[:300],
        "truncated.tif": encoded(noise(), "TIFF")[:3000],
        "header_only.jpg": jpeg[:20],
        "damaged.png": bytes(flipped),
        "bomb.png": png_of(30_000, 30_000),
        "short_of_data.png": png_of(500, 400),
        "text.png": b"I am a letter.\n",
        "page.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
        "zip.png": b"PK\x03\x04" + bytes(100),
        "floats.tif": encoded(Image.fromarray(np.linspace(0, 1, 900, dtype=np.float32).reshape(30, 30)), "TIFF"),
        "empty_sides.bmp": b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 0, 0, 1, 24, *[0] * 6),
    }


def write_hostile(folder: Path) -> list[str]:
    """Write forty unreadable samples of nineteen kinds with captions to a folder and return their names."""
    kinds = list(unreadable().items())
    names = []
    for number in range(37):
        name, content = kinds[number % len(kinds)]
        names.append(f"bad{number:02d}_{name}")
        (folder / names[-1]).write_bytes(content)
        (folder / names[-1]).with_suffix(".txt").write_text("bad")
    names += ["bad_caption.png", "bad_json.png", "bad_link.png"]
    for name in names[-3:-1]:
        (folder / name).write_bytes(encoded(noise(), "PNG"))
    (folder / "bad_caption.txt").write_bytes("Ein h\u00fcbscher B\u00e4r".encode("latin-1"))
    (folder / "bad_json.json").write_text('{"text": "broken off')
    (folder / "bad_link.png").symlink_to(folder / "nowhere.png")
    return names
