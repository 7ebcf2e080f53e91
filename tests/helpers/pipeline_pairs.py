"""Our pipeline and diffusers' of one folder, and how far apart their images are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
from PIL import Image

from ldm.checkpoint.pipeline import Pipeline
from ldm.generation import TextToImage


def both(pipeline: Pipeline, name: str, folder: Path) -> tuple[TextToImage, Any]:
    """Save a pipeline; load it as ours and as the class `name` of diffusers."""
    TextToImage(pipeline).save_pretrained(folder)
    theirs = getattr(diffusers, name).from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    return TextToImage.from_pretrained(folder, device="cpu"), theirs


def random_image(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8))


def psnr(image: Image.Image, expected: Image.Image) -> float:
    error = (np.asarray(image).astype(float) - np.asarray(expected)) / 255
    return float(10 * np.log10(1 / max(np.square(error).mean(), 1e-12)))
