"""Damaged or very large metadata does not lose sound pixels."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hostile import encoded, noise
from PIL import Image, ImageOps

from ldm.data.broken import UnreadableError
from ldm.data.images import decode, decode_map, header_size
from ldm.data.metadata import without_metadata

LARGE = b"a" * (2 << 20)
EXIF = (
    b"garbage",
    bytes(5),
    b"II*\0\x08\0\0\0\xff\xff",
    b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\0\0\0\xff\xff\xff\x7f\0\0\0\0",
)


def chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png_with(*chunks: bytes, image: Image.Image | None = None) -> bytes:
    content = encoded(image or noise(), "PNG")
    return content[:33] + b"".join(chunks) + content[33:]  # after the header


def jpeg_with(marker: int, content: bytes) -> bytes:
    jpeg = encoded(noise(), "JPEG")
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


def tiff_with_text_beyond_the_end() -> bytes:
    content = bytearray(encoded(noise(), "TIFF", tiffinfo={270: "a description of some length"}))
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    [field] = [at for at in range(start + 2, start + 2 + 12 * count, 12) if content[at : at + 2] == b"\x0e\x01"]
    content[field + 8 : field + 12] = struct.pack("<I", 0xFFFFFFF0)
    return bytes(content)


def webp_with_exif_beyond_the_end() -> bytes:
    content = encoded(noise(), "WEBP", lossless=True, exif=b"Exif\0\0II*\0")
    at = content.index(b"EXIF") + 4
    return content[:at] + struct.pack("<I", 0xFFFFFFF0) + content[at + 4 :]


FILES = {
    "profile.png": png_with(chunk(b"iCCP", b"icc\0\0" + zlib.compress(LARGE))),
    "empty_profile.png": png_with(chunk(b"iCCP", b"")),
    "compressed_text.png": png_with(chunk(b"zTXt", b"k\0\0" + zlib.compress(LARGE))),
    "international_text.png": png_with(chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(LARGE))),
    "many_texts.png": png_with(*[chunk(b"tEXt", b"k%d\0" % number + LARGE) for number in range(40)]),
    "checksum.png": png_with(chunk(b"tEXt", b"k\0abc", checksum=1)),
    "resolution.png": png_with(chunk(b"pHYs", b"a")),
    "adobe.jpg": jpeg_with(0xEE, b"Adobe"),
    "jfif.jpg": jpeg_with(0xE0, b"JFIF"),
    "profile.jpg": jpeg_with(0xE2, b"ICC_PROFILE\0"),
    "previews.jpg": jpeg_with(0xE2, b"MPF\0II*\0garbage"),
    "exif_size.webp": webp_with_exif_beyond_the_end(),
    "text.tif": tiff_with_text_beyond_the_end(),
    **{f"exif{number}.png": png_with(chunk(b"eXIf", exif)) for number, exif in enumerate(EXIF)},
    **{f"exif{number}.webp": encoded(noise(), "WEBP", lossless=True, exif=exif) for number, exif in enumerate(EXIF)},
    **{f"exif{number}.jpg": jpeg_with(0xE1, b"Exif\0\0" + exif) for number, exif in enumerate(EXIF)},
}


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_read_whatever_the_metadata_is(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    sound = encoded(noise(), "JPEG") if name.endswith("jpg") else encoded(noise(), "PNG")
    for given in (FILES[name], tmp_path / name):
        assert np.array_equal(np.asarray(decode(given, name)), np.asarray(decode(sound, "sound")))
        assert header_size(given, name) == (40, 48)


def test_orientation_and_transparency_survive_other_damaged_metadata() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    content = png_with(chunk(b"zTXt", b"k\0\0" + zlib.compress(LARGE)), chunk(b"eXIf", exif.tobytes()[6:]), image=image)
    made = np.asarray(decode(content, "a.png"))
    assert made.shape == (40, 20, 3)
    assert made.min() == 255


def test_a_map_of_classes_is_read_whatever_its_metadata_is() -> None:
    classes = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    content = png_with(chunk(b"tEXt", b"k\0abc", checksum=1), image=classes)
    assert np.array_equal(np.asarray(decode_map(content, "a.png")), np.asarray(classes))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_equals_that_of_pillow(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for form in ("PNG", "TIFF", "JPEG"):
        content = encoded(noise(), form, exif=exif.tobytes())
        with Image.open(io.BytesIO(content)) as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        assert np.array_equal(np.asarray(decode(content, form)), expected), form


def test_damaged_pixels_stay_unreadable_without_the_metadata() -> None:
    content = bytearray(png_with(chunk(b"tEXt", b"k\0abc", checksum=1)))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(UnreadableError):
        decode(bytes(content), "a.png")
    assert without_metadata(b"GIF89a") is None
