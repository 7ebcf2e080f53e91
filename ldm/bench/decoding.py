"""Decoding of latents to an image."""

from __future__ import annotations

from typing import Any

import torch

from ldm import config as configuration
from ldm.bench.networks import (
    Prepare,
    converted,
    operations,
    prepared,
    random_network,
    sides_of_diffusers,
    their_autoencoder,
)
from ldm.bench.sampling import noise_of
from ldm.bench.workload import Run, Workload
from ldm.devices import find_device
from ldm.models import tiling
from ldm.models.autoencoder.autoencoder import Autoencoder

TILE = 256  # side of a tile in pixels, for larger images


def decoding(name: str, size: int, dtype: torch.dtype, against: bool) -> Workload:
    """Decode one image of size x size with the autoencoder of a configuration.

    Images larger than a tile are also decoded in tiles, and compared only with diffusers' defaults in float32, since
    each run takes many seconds on a CPU.
    """
    config, device = configuration.load(name, [f"data.size={size}"]), find_device()
    autoencoder = random_network(lambda: Autoencoder(config.autoencoder)).to(device)
    latents = noise_of(config, 1).to(device)

    def ours(network: Autoencoder, tile: int = 0) -> Run:
        return lambda: tiling.decode(network, latents, tile)

    def theirs(prepare: Prepare, dtype: torch.dtype) -> Run:
        network = prepare(their_autoencoder(autoencoder), dtype)
        return torch.no_grad()(
            lambda: network.decode(latents.to(dtype) / network.config.scaling_factor).sample  # (1, 3, H, W)
        )

    fast, large = prepared(autoencoder, dtype), size > TILE
    sides: dict[str, Any] = {}
    if against:
        sides = {"theirs": theirs(converted, torch.float32)} if large else sides_of_diffusers(theirs, dtype)
    return Workload(
        ours=ours(fast),
        tiled=ours(fast, TILE) if large else None,
        plain=None if against else ours(autoencoder),
        flops=operations(config)["decode"],
        dtype=dtype,
        **sides,
    )
