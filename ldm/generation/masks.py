"""Masks of inpainting: images and arrays of any kind, read by one rule.

White or opaque strokes are regenerated. A mask without transparency is read by its brightness. In a mask with
transparent parts, the opaque ones are the strokes, whatever their colour; but if its colours, taken without alpha, are
another mask than its alpha channel, it is ambiguous.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import UserError, UserNote

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

HALF = 127  # brightness or alpha above which a pixel is regenerated
ADVICE = "give a mask without transparency, white where to regenerate the image and black where to keep it"


def read_mask(path: Path) -> Image.Image:
    """Read a mask from a file."""
    from ldm.data.images import decode_as_is

    return as_mask(decode_as_is(path, str(path)))


def as_mask(mask: Any) -> Image.Image:
    """Convert a mask to mode L: 255 where to regenerate the image, 0 where to keep it.

    Args:
        mask: an image of any mode or an array (H, W), (H, W, 1), (1, H, W), (H, W, 3) or (H, W, 4): booleans, 0 and 1,
            floating-point numbers from 0 to 1, or integers to 255 or 65535.

    Raises:
        UserError: for values out of range, and for a mask whose alpha channel and colours disagree.
    """
    import numpy as np
    from PIL import Image

    if not isinstance(mask, Image.Image):
        return _of_array(np.asarray(mask))
    if mask.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in mask.info:
        colours = mask.convert("RGBA")
        bright = _to_bytes(np.asarray(colours.convert("RGB").convert("L")))
        return Image.fromarray(_with_alpha(bright, _to_bytes(np.asarray(colours.getchannel("A")))))
    grey = mask if mask.mode in ("1", "L", "F") or mask.mode.startswith("I") else mask.convert("RGB").convert("L")
    return Image.fromarray(_to_bytes(np.asarray(grey)))


def scaled_to(mask: Image.Image, image: Image.Image) -> Image.Image:
    """Scale a mask to an image of the same shape but another size; other masks remain as they are."""
    if mask.size == image.size or mask.width * image.height != mask.height * image.width:
        return mask
    return mask.resize(image.size)


def warn_of_constant(mask: Image.Image) -> None:
    """Issue a warning for a mask that regenerates nothing, or everything."""
    low, high = mask.getextrema()
    if isinstance(high, int) and high <= HALF:
        _warn(f"the mask regenerates nothing (its brightest value is {high} of 255): the result is the input image")
    if isinstance(low, int) and low > HALF:
        _warn("the mask regenerates the whole image: paint black, or leave transparent, what to keep")


def _warn(text: str) -> None:
    warnings.warn(text, UserNote, stacklevel=5)


def _of_array(values: np.ndarray) -> Image.Image:
    from PIL import Image

    if values.ndim == 3 and values.shape[0] == 1:
        values = values[0]
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim == 3 and values.shape[-1] in (3, 4):
        return as_mask(Image.fromarray(_to_bytes(values)))
    if values.ndim != 2 or not values.size:
        raise UserError(f"the mask is an array of shape {values.shape}: give (height, width), with 1, 3 or 4 channels")
    return Image.fromarray(_to_bytes(values))


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Scale values to bytes from 0 to 255 by their type and range."""
    import numpy as np

    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if values.dtype.kind not in "iuf":
        raise UserError(f"the mask has values of type {values.dtype}: give booleans or numbers")
    low, high = values.min(), values.max()
    largest = 255 if values.dtype.kind == "f" else 65535
    if not (low >= 0 and high <= largest):  # also for NaN
        raise UserError(f"the mask has values from {low} to {high}: give 0 to 1, or 0 to {largest}")
    factor = 255 if high <= 1 else 1 if high <= 255 else 1 / 257
    return np.rint(values.astype(np.float64) * factor).astype(np.uint8)


def _with_alpha(bright: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Combine brightness (H, W) without alpha and the alpha channel (H, W) of a mask."""
    if alpha.min() == alpha.max() > 0:  # evenly opaque
        return bright
    white, opaque = bright > HALF, alpha > HALF
    if white.any() and not white.all():
        certain = opaque | (alpha == 0)  # soft edges are neither
        wrong = (white != opaque)[certain].mean()
        if wrong:
            raise UserError(
                f"the mask is ambiguous: its alpha channel and its colours disagree in {100 * wrong:.2g} % of its "
                f"pixels: {ADVICE}"
            )
    elif opaque.any() and not white.any() and bright[opaque].max() == 0:
        _warn(f"the mask has black strokes on a transparent layer: what is opaque is regenerated; else {ADVICE}")
    return alpha
