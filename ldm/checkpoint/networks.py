"""Autoencoders and U-Nets <-> their folders in the layout of diffusers."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ldm.checkpoint.autoencoder_fields import autoencoder_from_fields, autoencoder_to_fields
from ldm.checkpoint.fields import load_fields
from ldm.checkpoint.store import save_json
from ldm.checkpoint.unet_fields import unet_from_fields, unet_to_fields
from ldm.checkpoint.weights import SHARD_SIZE, build, load_weights, save_weights
from ldm.config import AutoencoderConfig
from ldm.models.autoencoder import Autoencoder
from ldm.models.unet import UNet

A = TypeVar("A", bound=Autoencoder)
U = TypeVar("U", bound=UNet)

DIFFUSERS_STEM = "diffusion_pytorch_model"

# Names that diffusers gave plain attention before version 0.15; Stable Diffusion 1's autoencoder still has them.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_autoencoder(kind: type[A], folder: Path, dtype: torch.dtype) -> A:
    """An autoencoder of class `kind` out of a folder with `config.json` and weights; UserError if it is not whole."""
    config = autoencoder_from_fields(load_fields(folder / "config.json"), folder / "config.json")
    return build(lambda: kind(config), _load(folder), dtype, folder)


def _load(folder: Path) -> dict[str, Tensor]:
    return {_new_name(name): tensor for name, tensor in load_weights(folder, DIFFUSERS_STEM).items()}


def _new_name(name: str) -> str:
    return re.sub(r"(\.attentions\.\d+\.)(\w+)", lambda found: found[1] + OLD_ATTENTION.get(found[2], found[2]), name)


def write_autoencoder(
    autoencoder: Autoencoder, folder: Path, dtype: torch.dtype | None = None, shard_size: int = SHARD_SIZE
) -> None:
    """Write an autoencoder, its weights as `dtype` if given, with its statistics folded into one scaling factor."""
    config, tensors = fold_statistics(autoencoder.config, autoencoder.state_dict())
    save_weights(folder, DIFFUSERS_STEM, tensors, dtype, shard_size)
    save_json(folder / "config.json", autoencoder_to_fields(config))


def fold_statistics(
    config: AutoencoderConfig, tensors: dict[str, Tensor]
) -> tuple[AutoencoderConfig, dict[str, Tensor]]:
    """The same latents and pictures with a single scaling factor s, all that StableDiffusionPipeline knows.

    With ratios r_c = s_c / s, the encoder's last layer gives mean' = (mean - shift_c) r_c and
    log-variance' = log-variance + 2 log r_c; the decoder's first layer undoes it, z = z' / r_c + shift_c.
    """
    scaling = config.scaling_factor
    if not isinstance(scaling, tuple) and not config.shift_factor:
        return config, tensors
    channels = config.latent_channels
    scales = scaling if isinstance(scaling, tuple) else (1.0 if scaling is None else scaling,) * channels
    common = math.exp(sum(math.log(s) for s in scales) / channels) if isinstance(scaling, tuple) else scales[0]
    ratios = torch.tensor(scales, dtype=torch.float64) / common
    shifts = torch.tensor(config.shift_factor or 0.0, dtype=torch.float64).expand(channels)

    encoder_weight, encoder_bias = (tensors[f"quant_conv.{name}"].double().cpu() for name in ("weight", "bias"))
    mean_bias, log_variance_bias = encoder_bias.chunk(2)
    decoder_weight, decoder_bias = (tensors[f"post_quant_conv.{name}"].double().cpu() for name in ("weight", "bias"))
    folded = {
        "quant_conv.weight": encoder_weight * torch.cat([ratios, torch.ones(channels)])[:, None, None, None],
        "quant_conv.bias": torch.cat([(mean_bias - shifts) * ratios, log_variance_bias + 2 * ratios.log()]),
        "post_quant_conv.weight": decoder_weight / ratios[None, :, None, None],
        "post_quant_conv.bias": decoder_bias + decoder_weight[:, :, 0, 0] @ shifts,
    }
    folded = {name: tensor.to(tensors[name].dtype) for name, tensor in folded.items()}
    unmeasured = config.scaling_factor is None
    update = {"scaling_factor": None if unmeasured else common, "shift_factor": None}
    return config.model_copy(update=update), tensors | folded


def read_unet(kind: type[U], folder: Path, dtype: torch.dtype) -> U:
    """A U-Net of class `kind` out of a folder with `config.json` and weights; UserError if it is not whole."""
    config = unet_from_fields(load_fields(folder / "config.json"), folder / "config.json")
    return build(lambda: kind(config), _load(folder), dtype, folder)


def write_unet(unet: UNet, folder: Path, dtype: torch.dtype | None = None, shard_size: int = SHARD_SIZE) -> None:
    """Write a U-Net, its weights as `dtype` if given."""
    save_weights(folder, DIFFUSERS_STEM, unet.state_dict(), dtype, shard_size)
    save_json(folder / "config.json", unet_to_fields(unet.config))
