"""Images that are held out of training, on which the validation loss is measured."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ldm.config.data import DataConfig
    from ldm.data.sources import IndexedSource

SHARE, LARGEST = 0.02, 512  # default share of the data, and the most images that it holds out
SMALLEST = 500  # images from which on the default holds out any


@dataclass(frozen=True)
class Validation:
    """Images on which a stage is validated."""

    source: IndexedSource
    indices: np.ndarray  # of the images in `source`, (n,)
    cached: bool = False  # whether the latents of `source` may be in a cache, under the same indices


def held_out_count(images: int, config: DataConfig) -> int:
    """Return how many of `images` images are held out of training."""
    if isinstance(config.validation, str):
        return 0
    if config.validation is None:
        return min(LARGEST, round(SHARE * images)) if images >= SMALLEST else 0
    return min(images - 1, max(1, round(config.validation * images))) if config.validation else 0


@lru_cache(maxsize=4)
def held_out(source: IndexedSource, config: DataConfig) -> np.ndarray:
    """Return the indices (n,), ascending, of the images held out of training: the smallest hashes of keys.

    The choice depends on neither the seed nor the order of the images, so that autoencoder and denoiser hold out the
    same ones, and an image that is added takes the place of at most one other.
    """
    count = held_out_count(len(source), config)
    if not count:
        return np.zeros(0, dtype=int)
    keys = (source.key(index).encode("utf-8", "surrogatepass") for index in range(len(source)))
    hashes = [hashlib.blake2b(key, digest_size=8).digest() for key in keys]
    numbers = np.array([int.from_bytes(each) for each in hashes], dtype=np.uint64)
    return np.sort(np.argsort(numbers, kind="stable")[:count])


def spread_over(indices: np.ndarray, count: int) -> list[int]:
    """Return up to `count` of the indices, evenly spread."""
    rows = np.linspace(0, len(indices) - 1, min(count, len(indices))).round().astype(int)
    return [int(index) for index in indices[rows]]
