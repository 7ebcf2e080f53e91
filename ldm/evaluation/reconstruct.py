"""Single pictures through an autoencoder and back, at their own size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ldm.checkpoint.pretrained import Autoencoder
from ldm.data.pictures import to_bytes, to_rgb, to_tensor
from ldm.errors import UserError


def read_picture(path: Path, multiple: int) -> np.ndarray:
    """A picture file as bytes (H, W, 3), cut in the middle to sides that `multiple` divides."""
    try:
        with Image.open(path) as opened:
            picture = np.asarray(to_rgb(opened))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as a picture: {getattr(error, 'strerror', None) or error}") from error
    height, width = (side // multiple * multiple for side in picture.shape[:2])
    if not height or not width:
        raise UserError(f"{path} is smaller than {multiple} pixels, the least that this autoencoder takes")
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return picture[top : top + height, left : left + width]


@torch.inference_mode()
def reconstruction(autoencoder: Autoencoder, picture: np.ndarray) -> np.ndarray:
    """What comes back of a picture, bytes (H, W, 3), through the posterior's mode."""
    device = next(autoencoder.parameters()).device
    latents = autoencoder.encode(to_tensor(picture[None]).to(device)).mode()
    return to_bytes(autoencoder.decode(latents))[0]
