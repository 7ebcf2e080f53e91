"""Latents to an image."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm import config as configuration
from ldm.bench.networks import converted, operations, prepared, random_network, their_autoencoder
from ldm.bench.sampling import noise_of, tuned_network
from ldm.bench.workload import Run, Workload
from ldm.devices import find_device
from ldm.models import tiling
from ldm.models.autoencoder.autoencoder import Autoencoder

TILE = 256  # pixels of a tile's side, where whole images are larger


def decoding(name: str, size: int, dtype: torch.dtype, against: bool) -> Workload:
    """One image of size x size out of its latents, by the autoencoder of a configuration.

    Images that are larger than a tile are made in tiles as well, but beside diffusers' defaults alone: each run takes
    many seconds on a CPU.
    """
    config, device = configuration.load(name, [f"data.size={size}"]), find_device()
    autoencoder = random_network(lambda: Autoencoder(config.autoencoder)).to(device)
    latents = noise_of(config, 1).to(device)

    def ours(network: Autoencoder, tile: int = 0) -> Run:
        return lambda: tiling.decode(network, latents, tile)

    def theirs(dtype: torch.dtype, tuned: bool = False) -> Run | None:
        if not against:
            return None
        network = (tuned_network if tuned else converted)(their_autoencoder(autoencoder), dtype)

        def run() -> Tensor:
            return network.decode(latents.to(dtype) / network.config.scaling_factor).sample

        return torch.no_grad()(run)

    fast, large = prepared(autoencoder, dtype), size > TILE
    return Workload(
        ours=ours(fast),
        theirs=theirs(torch.float32),
        tuned=None if large else theirs(dtype, tuned=True),
        theirs_bf16=theirs(dtype) if dtype == torch.bfloat16 and not large else None,
        tiled=ours(fast, TILE) if large else None,
        plain=None if against else ours(autoencoder),
        flops=operations(config)["decode"],
        dtype=dtype,
    )
