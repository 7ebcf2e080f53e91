"""Decode, crop and convert images: files -> RGB bytes of one size -> tensors in [-1, 1]."""

from __future__ import annotations

import colorsys
import io
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from ldm.data.broken import UnreadableError
from ldm.data.metadata import without_metadata

if TYPE_CHECKING:
    from ldm.config.data import Size

T = TypeVar("T")

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2")
# Raster formats only: Pillow would run Ghostscript for a file with PostScript content, whatever its suffix.
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
RESIZING = "shorter side by Pillow's Lanczos filter, antialiased, then the middle square"  # what `fit` does
# Of the first classes in a map that is shown.
CLASS_COLOURS = ["FFFFFF", "A3D977", "E4572E", "9B5DE5", "F6AE2D", "2F4858", "33A1FD", "F26CA7", "2E933C", "8D8D8D"]
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
TURNS = {  # from EXIF orientations to upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class CroppedImage:
    """A resized and cropped image, and how it was cropped."""

    pixels: np.ndarray  # uint8 (H, W, 3), of a map (H, W)
    original: Size  # before the resize
    resized: Size
    crop: tuple[int, int]  # top and left of the crop in the resized image

    def flipped(self) -> CroppedImage:
        """Flip left to right; `crop` is then the crop position in the flipped image."""
        top, left = self.crop
        crop = (top, self.resized[1] - self.pixels.shape[1] - left)
        return CroppedImage(self.pixels[:, ::-1], self.original, self.resized, crop)


def read_image(path: Path) -> Image.Image:
    """Read an image file, upright and in RGB.

    Raises:
        UserError: if it cannot be read.
    """
    return decode(path, str(path))


def decode(content: bytes | Path, name: str) -> Image.Image:
    """Decode the first frame of a file or its bytes, upright and in RGB.

    Raises:
        UnreadableError: also for truncated files, and for more than 179 megapixels (decompression bombs).
    """
    return _read(content, name, to_rgb)


def decode_as_is(content: bytes | Path, name: str) -> Image.Image:
    """Decode the first frame upright, in the file's own mode and with its transparency; see `decode` for errors."""
    return _read(content, name, upright)


def decode_map(content: bytes | Path, name: str) -> Image.Image:
    """Decode a map of class numbers from a PNG's file or bytes, in mode L; UnreadableError if that fails."""
    return _read(content, name, _class_numbers)


def header_size(content: bytes | Path, name: str) -> Size:
    """Read height and width of the upright image from its header; UnreadableError if that fails."""
    return _read(content, name, _upright_size)


def _read(content: bytes | Path, name: str, use: Callable[[Image.Image], T]) -> T:
    """Return what `use` makes of an opened file; where that fails, of the file without its metadata."""
    Image.init()
    formats = [form for form in FORMATS if form in Image.OPEN]  # AVIF and JPEG 2000 are optional in Pillow
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about large images and damaged metadata
        try:
            with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=formats) as image:
                return use(image)
        except Exception as error:  # decoders raise any type for damaged input
            with suppress(Exception):
                bare = without_metadata(content if isinstance(content, bytes) else content.read_bytes())
                if bare is not None:
                    with Image.open(io.BytesIO(bare), formats=formats) as image:
                        return use(image)
            empty = isinstance(error, Image.UnidentifiedImageError)
            raise UnreadableError(name, "it is empty or not an image" if empty else error) from error


def _upright_size(image: Image.Image) -> Size:
    width, height = image.size
    return (width, height) if _orientation(image) in SIDEWAYS else (height, width)


def _class_numbers(image: Image.Image) -> Image.Image:
    if image.mode not in ("L", "P"):
        raise ValueError(f"a map must be of mode L or P (class numbers), this is of mode {image.mode}")
    return Image.fromarray(np.asarray(image))


def upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF says; damaged EXIF is ignored."""
    image.load()
    turn = TURNS.get(_orientation(image))
    return image.copy() if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow's parser raises any type for damaged EXIF
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to upright RGB; transparent parts become white, 16 bits are rounded to 8."""
    image = upright(image)
    if image.mode.startswith("I"):
        image = _rounded(image)
    if image.mode == "F":
        raise ValueError("its values are floating-point numbers of an unknown range")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _rounded(image: Image.Image) -> Image.Image:
    """Convert grey values from 16 bits to 8; Pillow's own conversion would clip them at 255."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its values are integers of more than 16 bits")
    return Image.fromarray((values / 257).round().astype(np.uint8))


def resize_and_crop(
    image: Image.Image,
    size: Size,
    at: tuple[float, float] = (0.5, 0.5),
    zoom: float = 1.0,
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> CroppedImage:
    """Scale an image until it covers `size`, enlarge it by `zoom`, and crop it to `size`.

    Args:
        at: place of the crop as (across, down), from (0, 0) for left and top to (1, 1) for right and bottom.
    """
    height, width = size
    scale = zoom * max(width / image.width, height / image.height)
    scaled_width, scaled_height = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    left, top = round(at[0] * (scaled_width - width)), round(at[1] * (scaled_height - height))
    original, resized, crop = (image.height, image.width), (scaled_height, scaled_width), (top, left)
    if (scaled_width, scaled_height) == image.size:
        same = image.crop((left, top, left + width, top + height))
        return CroppedImage(np.asarray(same), original, resized, crop)
    # Resize only the part that is kept: an image of 1 x 100,000 would need far too much memory otherwise.
    across, down = image.width / scaled_width, image.height / scaled_height
    right, bottom = min((left + width) * across, image.width), min((top + height) * down, image.height)
    box = (left * across, top * down, right, bottom)
    made = image.resize((width, height), resample, box, reducing_gap=3.0)
    return CroppedImage(np.asarray(made), original, resized, crop)


def fit(image: Image.Image | np.ndarray, size: int) -> np.ndarray:
    """Resize and center-crop a source's image to bytes (size, size, 3)."""
    if isinstance(image, np.ndarray):
        if image.shape[:2] == (size, size):
            return image
        image = Image.fromarray(image)
    return resize_and_crop(image, (size, size)).pixels


def to_tensor(images: np.ndarray) -> Tensor:
    """Convert bytes (B, H, W, 3) to float32 (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def to_bytes(images: Tensor) -> np.ndarray:
    """Convert (B, 3, H, W) in [-1, 1] to rounded and clamped bytes (B, H, W, 3)."""
    scaled = images.detach().float().clamp(-1, 1).add(1).mul(127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def paint(classes: np.ndarray) -> Image.Image:
    """Convert a map of class numbers (H, W) to an image with a palette, whose indices are these numbers."""
    image = Image.fromarray(classes)
    image.putpalette(b"".join(bytes.fromhex(colour) for colour in CLASS_COLOURS) + _distinct_colours())
    return image


def _distinct_colours() -> bytes:
    """Return colours of the classes after those of `CLASS_COLOURS`: hues in steps of the golden ratio."""
    hues = (number * 0.618 % 1 for number in range(256 - len(CLASS_COLOURS)))
    return bytes(round(255 * part) for hue in hues for part in colorsys.hsv_to_rgb(hue, 0.6, 0.8))


def contact_sheet(images: Sequence[Image.Image] | np.ndarray, columns: int, gap: int = 2) -> Image.Image:
    """Arrange images of one size, or bytes (B, H, W, 3), in rows on white."""
    images = [image if isinstance(image, Image.Image) else Image.fromarray(image) for image in images]
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(image, (column * (width + gap), row * (height + gap)))
    return sheet
