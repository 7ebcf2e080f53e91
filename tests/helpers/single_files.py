"""Single files: golden data of the original implementation, and small models of Stable Diffusion's kinds."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ldm.checkpoint.compvis import SingleFile
from ldm.checkpoint.compvis.contents import Contents
from ldm.conditioning.text.clip import CLIPConfig
from ldm.config.diffusion import DiffusionConfig
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.unet.config import UNetConfig

GOLDEN = Path(__file__).parents[1] / "checkpoint" / "golden"
NARROW = AutoencoderConfig(block_out_channels=(32, 32), layers_per_block=1, latent_channels=3)
PLAIN: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "attention": "plain",
    "cross_attention_dim": None,
    "layers_per_block": 1,
    "num_attention_heads": 4,
}
GOLDEN_MODELS = ("text-kl-bert", "uncond-vq", "class-vq")


def golden_weights(model: str) -> dict[str, Tensor]:
    """Return weights generated from their keys, as for the golden data."""
    content = json.loads((GOLDEN / model / "keys.json").read_text())
    return {key: torch.from_numpy(_weight(key, shape, content["seed"])) for key, shape in content["keys"].items()}


def _weight(key: str, shape: list[int], seed: int) -> np.ndarray:
    rng = np.random.RandomState(zlib.crc32(key.encode()) ^ seed)
    w = rng.standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        w /= np.sqrt(np.prod(shape[1:]))
    elif key.endswith("weight"):
        w = 1 + 0.1 * w
    else:
        w = 0.1 * w
    return w.astype(np.float32)


def golden_arrays(model: str) -> dict[str, Tensor]:
    """Return inputs and the outputs of the original implementation."""
    return load_file(GOLDEN / model / "io.safetensors")


AUTOENCODER = AutoencoderConfig(
    block_out_channels=(32, 32, 64, 64), layers_per_block=1, sample_size=64, scaling_factor=0.18215
)
LEVELS = {"block_out_channels": (32, 64, 128, 128), "attention_layers": (1, 1, 1, 0), "sample_size": 8}
TEXT = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
OPEN_CLIP = TEXT | {"hidden_act": "gelu"}
INSIDE = {"layer": "penultimate", "final_norm": False}

SMALL_MODELS = {
    "sd1": Contents(
        autoencoder=AUTOENCODER,
        text=CLIPConfig(**TEXT),
        unet=UNetConfig(num_attention_heads=8, cross_attention_dim=64, use_linear_projection=False, **LEVELS),
        diffusion=DiffusionConfig(),
    ),
    "sd2": Contents(
        autoencoder=AUTOENCODER,
        text=CLIPConfig(**OPEN_CLIP),
        unet=UNetConfig(num_attention_heads=(1, 2, 4, 4), cross_attention_dim=64, layers_per_block=1, **LEVELS),
        diffusion=DiffusionConfig(prediction="v"),
    ),
    "sdxl": Contents(
        autoencoder=AUTOENCODER.model_copy(update={"scaling_factor": 0.13025}),
        text=CLIPConfig(**TEXT, **INSIDE),
        text_2=CLIPConfig(**OPEN_CLIP | {"hidden_size": 96}, **INSIDE, projection_dim=80),
        unet=UNetConfig(
            block_out_channels=(32, 64, 128),
            layers_per_block=1,
            attention_layers=(0, 2, 3),
            num_attention_heads=(1, 2, 4),
            cross_attention_dim=64 + 96,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=80 + 6 * 8,
            sample_size=8,
        ),
        diffusion=DiffusionConfig(),
        zeros_for_empty_prompt=True,
    ),
}


def with_weights(contents: Contents, seed: int = 0, dtype: torch.dtype = torch.float32) -> SingleFile:
    """Return networks with random weights whose outputs depend on every input."""
    generator = torch.Generator().manual_seed(seed)
    networks = {}
    for name in contents.networks:
        with torch.device("meta"):
            network = contents.make(name)
        made = {
            key: torch.randn(like.shape, generator=generator) * (like[0].numel() ** -0.5 if like.ndim > 1 else 0.1)
            + (like.ndim == 1)
            for key, like in network.state_dict().items()
        }
        network.load_state_dict({key: weight.to(dtype) for key, weight in made.items()}, assign=True)
        networks[name] = network.eval()
    return SingleFile(contents, networks)


def same_networks(found: SingleFile, expected: SingleFile) -> bool:
    """Return whether two models have the same networks and equal weights."""
    if found.contents != expected.contents or found.networks.keys() != expected.networks.keys():
        return False
    pairs = [(found.networks[name].state_dict(), network.state_dict()) for name, network in expected.networks.items()]
    return all(
        a.keys() == b.keys() and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in b)
        for a, b in pairs
    )
