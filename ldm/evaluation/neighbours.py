"""The images of a data set that are nearest to each sample: what a model that remembers its data would show."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.data.images import contact_sheet


def nearest(features: Tensor, references: Tensor, count: int) -> Tensor:
    """Numbers (N, count) of the references (M, D) that are nearest to each of the features (N, D), nearest first."""
    count = min(count, len(references))
    distances = (torch.cdist(part.double(), references.double()) for part in features.split(256))
    return torch.cat([part.topk(count, largest=False).indices for part in distances])


def as_vectors(images: np.ndarray, side: int = 32) -> Tensor:
    """Bytes (N, H, W, 3) as vectors of pixels (N, 3 side^2) in [0, 1], averaged down where they are larger."""
    values = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    if values.shape[-1] > side:
        values = torch.nn.functional.adaptive_avg_pool2d(values, side)
    return values.flatten(1)


def neighbour_sheet(samples: np.ndarray, image: Callable[[int], np.ndarray], *numbers: Tensor) -> Image.Image:
    """A row a sample: the sample, then its neighbours by each of the `numbers` (N, count), bytes (N, H, W, 3).

    `image` gives the image of the data with a number, bytes (H, W, 3).
    """
    rows = []
    for index, sample in enumerate(samples):
        rows.append(sample)
        for found in numbers:
            rows += [image(number) for number in found[index].tolist()]
    return contact_sheet(np.stack(rows), columns=1 + sum(found.shape[1] for found in numbers))
