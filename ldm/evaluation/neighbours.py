"""Nearest neighbours of samples in the data, which show whether a model memorized its training images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.data.images import contact_sheet


def nearest(features: Tensor, references: Tensor, count: int) -> Tensor:
    """Return the indices (N, count) of the references (M, D) nearest to each of the features (N, D), nearest first."""
    count = min(count, len(references))
    distances = (torch.cdist(part.double(), references.double()) for part in features.split(256))
    return torch.cat([part.topk(count, largest=False).indices for part in distances])


def as_vectors(images: np.ndarray, side: int = 32) -> Tensor:
    """Convert bytes (N, H, W, 3) to vectors of pixels (N, 3 side^2) in [0, 1]; larger images are averaged."""
    values = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    if values.shape[-1] > side:
        values = torch.nn.functional.adaptive_avg_pool2d(values, side)
    return values.flatten(1)


def neighbour_sheet(samples: np.ndarray, image: Callable[[int], np.ndarray], *numbers: Tensor) -> Image.Image:
    """Make a contact sheet with a row per sample: the sample, then its neighbours.

    Args:
        samples: bytes (N, H, W, 3).
        image: returns an image of the data by index, bytes (H, W, 3).
        numbers: indices (N, count) of neighbours, one tensor for each kind.
    """
    rows = []
    for index, sample in enumerate(samples):
        rows.append(sample)
        for found in numbers:
            rows += [image(number) for number in found[index].tolist()]
    return contact_sheet(np.stack(rows), columns=1 + sum(found.shape[1] for found in numbers))
