"""A source of flat grey images, a configuration for it, and the comparison of nested states."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ldm import config
from ldm.config.root import Config
from ldm.data.sources import IndexedSource


class Grey(IndexedSource):
    """Flat images."""

    def __len__(self) -> int:
        return 6

    def image(self, index: int) -> np.ndarray:
        return np.full((32, 32, 3), 30 * index, dtype=np.uint8)

    def captions(self, index: int) -> list[str]:
        return [f"grey number {index}"]


def settings(*overrides: str) -> Config:
    return config.load("tiny", ["training.autoencoder.batch_size=4", "training.unet.batch_size=4", *overrides])


def assert_close(ours: Any, theirs: Any, tolerance: float) -> None:
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_close(ours[key], theirs[key], tolerance)
    elif isinstance(ours, list):
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one, other, tolerance)
    elif isinstance(ours, torch.Tensor):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
