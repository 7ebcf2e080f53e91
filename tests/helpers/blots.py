"""A small data set and features that need no files."""

import numpy as np
import torch
from torch import nn

from ldm.data.sources import IndexedSource
from ldm.evaluation.features import Features

SIDE = 32


class Blots(IndexedSource):
    """A source of smooth random images that counts reads."""

    def __init__(self, count: int = 12, seed: int = 0) -> None:
        coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 255
        smooth = nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic").clamp(0, 255)
        self.images = smooth.round().byte().permute(0, 2, 3, 1).numpy()
        self.seed, self.taken = seed, 0

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> np.ndarray:
        self.taken += 1
        return self.images[index]

    def shape(self, index: int) -> tuple[int, int]:
        return SIDE, SIDE

    def captions(self, index: int) -> list[str]:
        return [f"a dog {index}", "a cat"]

    def label(self, index: int) -> int:
        return index

    @property
    def class_names(self) -> tuple[str, ...]:
        return ()

    def stamp(self, index: int) -> str:
        return f"blots {self.seed} {index}"


def blot_features(seed: int = 0) -> Features:
    """Return features of six dimensions."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Conv2d(3, 6, 5, stride=4), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Features(f"blot-{seed}", network, 16)
