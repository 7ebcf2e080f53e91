"""A picture of any kind and size -> RGB bytes of one size -> numbers in [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ldm.errors import UserError


def read_picture(path: Path) -> Image.Image:
    """A picture file, upright and in RGB; UserError when it cannot be read."""
    try:
        with Image.open(path) as opened:
            return to_rgb(opened)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as a picture: {getattr(error, 'strerror', None) or error}") from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """The picture upright and in RGB; transparent parts lie on white."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def resize_and_crop(picture: Image.Image, size: int, at: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """Scale the shorter side to `size` pixels and cut a square; uint8 (size, size, 3).

    `at` says where the square lies in what can be cut away, (0, 0) left and top to (1, 1) right and bottom.
    """
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    left, top = round(at[0] * (width - size)), round(at[1] * (height - size))
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def to_tensor(pictures: np.ndarray) -> Tensor:
    """Bytes (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def to_bytes(pictures: Tensor) -> np.ndarray:
    """Numbers (B, 3, H, W) in [-1, 1] -> rounded and clamped bytes (B, H, W, 3)."""
    scaled = pictures.detach().float().clamp(-1, 1).add(1).mul(127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def contact_sheet(pictures: Sequence[Image.Image] | np.ndarray, columns: int, gap: int = 2) -> Image.Image:
    """Pictures of one size, or bytes (B, H, W, 3), side by side on white, row by row."""
    images = [picture if isinstance(picture, Image.Image) else Image.fromarray(picture) for picture in pictures]
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(image, (column * (width + gap), row * (height + gap)))
    return sheet
