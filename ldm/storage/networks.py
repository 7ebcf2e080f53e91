"""Folders of diffusers' networks: `config.json` and the weights."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from ldm.storage.fields import Fields
from ldm.storage.store import save_json
from ldm.storage.weights import SHARD_SIZE, load_weights, save_weights

STEM = "diffusion_pytorch_model"

# Attention weights had these names in diffusers before 0.15; Stable Diffusion 1's autoencoder still has them.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_network_weights(folder: Path) -> dict[str, Tensor]:
    """Load the weights in a folder, under the names of current diffusers versions."""
    return {_current_name(name): tensor for name, tensor in load_weights(folder, STEM).items()}


def _current_name(name: str) -> str:
    return re.sub(r"(\.attentions\.\d+\.)(\w+)", lambda found: found[1] + OLD_ATTENTION.get(found[2], found[2]), name)


def save_network(
    folder: Path,
    fields: Fields,
    tensors: dict[str, Tensor],
    dtype: torch.dtype | None = None,
    shard_size: int = SHARD_SIZE,
) -> None:
    """Write weights, converted to `dtype` if given, and then `config.json`."""
    save_weights(folder, STEM, tensors, dtype, shard_size)
    save_json(folder / "config.json", fields)
