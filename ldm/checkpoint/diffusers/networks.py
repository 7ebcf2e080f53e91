"""Autoencoders and U-Nets <-> their folders in the layout of diffusers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ldm.checkpoint.diffusers.autoencoder_fields import autoencoder_from_fields, autoencoder_to_fields
from ldm.checkpoint.diffusers.latent_statistics import fold_statistics
from ldm.checkpoint.diffusers.unet_fields import unet_from_fields, unet_to_fields
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.unet.unet import UNet
from ldm.storage.fields import load_fields
from ldm.storage.store import save_json
from ldm.storage.weights import SHARD_SIZE, build, load_weights, save_weights

A = TypeVar("A", bound=Autoencoder)
U = TypeVar("U", bound=UNet)

DIFFUSERS_STEM = "diffusion_pytorch_model"

# Names that diffusers gave plain attention before version 0.15; Stable Diffusion 1's autoencoder still has them.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_autoencoder(kind: type[A], folder: Path, dtype: torch.dtype) -> A:
    """An autoencoder of class `kind` out of a folder with `config.json` and weights; UserError if it is not whole.

    Where float16 is asked for, one that asks to be spared of it is float32.
    """
    config = autoencoder_from_fields(load_fields(folder / "config.json"), folder / "config.json")
    if dtype == torch.float16 and config.force_upcast:
        dtype = torch.float32
    return build(lambda: kind(config), _load(folder), dtype, folder)


def _load(folder: Path) -> dict[str, Tensor]:
    return {_new_name(name): tensor for name, tensor in load_weights(folder, DIFFUSERS_STEM).items()}


def _new_name(name: str) -> str:
    return re.sub(r"(\.attentions\.\d+\.)(\w+)", lambda found: found[1] + OLD_ATTENTION.get(found[2], found[2]), name)


def write_autoencoder(
    autoencoder: Autoencoder, folder: Path, dtype: torch.dtype | None = None, shard_size: int = SHARD_SIZE
) -> None:
    """Write an autoencoder, its weights as `dtype` if given, with its statistics folded into one scaling factor.

    Raises UserError, with nothing written, for what diffusers' class cannot express.
    """
    config, tensors = fold_statistics(autoencoder.config, autoencoder.state_dict())
    fields = autoencoder_to_fields(config)
    save_weights(folder, DIFFUSERS_STEM, tensors, dtype, shard_size)
    save_json(folder / "config.json", fields)


def read_unet(kind: type[U], folder: Path, dtype: torch.dtype) -> U:
    """A U-Net of class `kind` out of a folder with `config.json` and weights; UserError if it is not whole."""
    config = unet_from_fields(load_fields(folder / "config.json"), folder / "config.json")
    return build(lambda: kind(config), _load(folder), dtype, folder)


def write_unet(unet: UNet, folder: Path, dtype: torch.dtype | None = None, shard_size: int = SHARD_SIZE) -> None:
    """Write a U-Net, its weights as `dtype` if given.

    Raises UserError, with nothing written, for what diffusers' classes cannot express.
    """
    fields = unet_to_fields(unet.config)
    save_weights(folder, DIFFUSERS_STEM, unet.state_dict(), dtype, shard_size)
    save_json(folder / "config.json", fields)
