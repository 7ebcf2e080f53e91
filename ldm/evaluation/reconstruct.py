"""Reconstruct single images with an autoencoder at their own size."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from ldm.data.images import to_bytes, to_tensor
from ldm.errors import UserError
from ldm.generation.init_image import cut
from ldm.models import tiling
from ldm.models.autoencoder.autoencoder import Autoencoder


def cut_to_multiple(image: Image.Image, multiple: int, name: str) -> np.ndarray:
    """Crop the centre of an image to sides that `multiple` divides, bytes (H, W, 3)."""
    width, height = (side // multiple * multiple for side in image.size)
    if not height or not width:
        raise UserError(f"{name} is smaller than {multiple} pixels, the minimum of this autoencoder")
    return np.array(cut(image, (width, height)))


@torch.inference_mode()
def reconstruction(autoencoder: Autoencoder, image: np.ndarray, tile: int | None = None) -> np.ndarray:
    """Encode and decode an image, bytes (H, W, 3), through the posterior's mode; `tile` as in `ldm.models.tiling`."""
    device = next(autoencoder.parameters(), torch.empty(0)).device  # on the CPU without weights
    latents = tiling.encode(autoencoder, to_tensor(image[None]).to(device), tile).mode()
    return to_bytes(tiling.decode(autoencoder, latents, tile))[0]
