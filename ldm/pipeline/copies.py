"""U-Net and autoencoder in another type than their weights have, copied when they are first asked for."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch

from ldm.checkpoint.parts import Parts
from ldm.models.autoencoder import Autoencoder
from ldm.models.unet import UNet


class Networks(NamedTuple):
    """What draws: latents, and pictures of them."""

    unet: UNet
    autoencoder: Autoencoder


class Copies:
    """The networks of a model by the type in which they compute."""

    def __init__(self, parts: Parts) -> None:
        self.own = Networks(parts.unet, parts.autoencoder)
        self._made: dict[torch.dtype, Networks] = {}

    def of(self, dtype: torch.dtype | None = None) -> Networks:
        """Those of a type; None: the model's own."""
        if dtype is None or dtype == self.own.unet.dtype == self.own.autoencoder.dtype:
            return self.own
        if dtype not in self._made:
            self._made[dtype] = Networks(*(copy.deepcopy(network).to(dtype) for network in self.own))
        return self._made[dtype]

    def clear(self) -> None:
        """Forget what was made, since the model's own networks have changed or moved."""
        self._made.clear()
