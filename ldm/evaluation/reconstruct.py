"""Single pictures through an autoencoder and back, at their own size."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from ldm.checkpoint.pretrained import Autoencoder
from ldm.data.pictures import to_bytes, to_tensor
from ldm.errors import UserError
from ldm.models import tiling
from ldm.pipeline.given import cut


def cut_to_multiple(picture: Image.Image, multiple: int, name: str) -> np.ndarray:
    """A picture as bytes (H, W, 3), cut in the middle to sides that `multiple` divides; UserError if none is left."""
    width, height = (side // multiple * multiple for side in picture.size)
    if not height or not width:
        raise UserError(f"{name} is smaller than {multiple} pixels, the least that this autoencoder takes")
    return np.array(cut(picture, (width, height)))


@torch.inference_mode()
def reconstruction(autoencoder: Autoencoder, picture: np.ndarray) -> np.ndarray:
    """What comes back of a picture, bytes (H, W, 3), through the posterior's mode."""
    device = next(autoencoder.parameters(), torch.empty(0)).device
    latents = tiling.encode(autoencoder, to_tensor(picture[None]).to(device)).mode()
    return to_bytes(tiling.decode(autoencoder, latents))[0]
