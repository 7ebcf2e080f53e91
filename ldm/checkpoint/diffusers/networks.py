"""U-Nets <-> their folders in the layout of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch

from ldm.checkpoint.diffusers.unet_fields import unet_from_fields, unet_to_fields
from ldm.models.unet.unet import UNet
from ldm.storage.fields import load_fields
from ldm.storage.networks import load_network_weights, save_network
from ldm.storage.weights import SHARD_SIZE, build

U = TypeVar("U", bound=UNet)


def read_unet(kind: type[U], folder: Path, dtype: torch.dtype) -> U:
    """A U-Net of class `kind` out of a folder with `config.json` and weights; UserError if it is not whole."""
    config = unet_from_fields(load_fields(folder / "config.json"), folder / "config.json")
    return build(lambda: kind(config), load_network_weights(folder), dtype, folder)


def write_unet(unet: UNet, folder: Path, dtype: torch.dtype | None = None, shard_size: int = SHARD_SIZE) -> None:
    """Write a U-Net, its weights as `dtype` if given.

    Raises UserError, with nothing written, for what diffusers' classes cannot express.
    """
    fields = unet_to_fields(unet.config)
    save_network(folder, fields, unet.state_dict(), dtype, shard_size)
