"""Networks of real sizes with random weights, and those of diffusers that hold the same."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ldm.checkpoint.diffusers.scheduler_fields import scheduler_to_fields
from ldm.conditioning.text.encoder import TextEncoder
from ldm.conditioning.text.files import save_text_encoder
from ldm.config.diffusion import DiffusionConfig
from ldm.config.root import Config
from ldm.devices import on_meta
from ldm.generation.cuda_graphs import CUDAGraphUNet
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.fields import autoencoder_to_fields
from ldm.models.compiling import compile_blocks
from ldm.models.cost import autoencoder_flops, unet_flops
from ldm.models.fast import prepare_for_sampling
from ldm.models.unet.fields import unet_to_fields
from ldm.models.unet.unet import UNet
from ldm.storage.fields import EXTRA, Fields

N = TypeVar("N", bound=nn.Module)
M = TypeVar("M", UNet, Autoencoder)

TOKENS = 77  # of CLIP's text


def random_network(make: Callable[[], N], seed: int = 0) -> N:
    """A network in evaluation mode whose weights are all drawn, those that start at zero as well.

    They are small enough that outputs stay finite, and memory is taken once.
    """
    with on_meta():
        network = make()
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            spread = 0.7 * weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.02
            weight.uniform_(-spread, spread, generator=generator)
            if "norm" in name and name.endswith("weight"):
                weight += 1
    return network.eval()


def their_unet(unet: UNet) -> Any:
    """diffusers' UNet2DConditionModel on the same memory."""
    from diffusers import UNet2DConditionModel

    return _filled(UNet2DConditionModel, unet_to_fields(unet.config), unet)


def their_autoencoder(autoencoder: Autoencoder) -> Any:
    """diffusers' AutoencoderKL on the same memory."""
    from diffusers import AutoencoderKL

    return _filled(AutoencoderKL, autoencoder_to_fields(autoencoder.config), autoencoder)


def their_text_encoder(encoder: TextEncoder, folder: Path) -> Any:
    """transformers' CLIPTextModel with the same weights, by way of a folder that is written."""
    from transformers import CLIPTextModel

    save_text_encoder(encoder, folder)
    return CLIPTextModel.from_pretrained(folder).eval().requires_grad_(False)


def their_scheduler(diffusion: DiffusionConfig) -> Any:
    """diffusers' DDIMScheduler of the same levels."""
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_config(_known(scheduler_to_fields(diffusion)))


def _filled(kind: Any, fields: Fields, network: nn.Module) -> Any:
    from diffusers.utils import logging

    logging.set_verbosity_error()  # it warns of every change of a network's type
    with on_meta():
        theirs = kind.from_config(_known(fields))
    theirs.load_state_dict(network.state_dict(), assign=True)
    return theirs.eval()


def _known(fields: Fields) -> Fields:
    """Fields without ours beside them, of which diffusers would warn."""
    return {name: value for name, value in fields.items() if name != EXTRA}


def converted(network: N, dtype: torch.dtype) -> N:
    """The network itself in float32, else a copy with weights of another type."""
    return network if dtype == torch.float32 else deepcopy(network).to(dtype)


def prepared(network: M, dtype: torch.dtype) -> M:
    """One of ours as `TextToImage` has it: made for inference and, on a GPU, compiled."""
    made = prepare_for_sampling(network, dtype)
    if next(network.parameters()).device.type == "cuda":
        compile_blocks(made)
    return made


def recorded(unet: UNet) -> UNet | CUDAGraphUNet:
    """On a GPU a U-Net by recordings of its calls."""
    return CUDAGraphUNet(unet) if next(unet.parameters()).device.type == "cuda" else unet


def operations(config: Config) -> dict[str, int]:
    """Count the operations of each network of a configuration on one sample: `unet`, `encode` and `decode`.

    These are the operations of the plain networks: what ours computes once per prompt counts in every call.
    """
    with on_meta():
        unet, autoencoder = UNet(config.need_unet()), Autoencoder(config.autoencoder)
    side = config.data.size // config.autoencoder.downsampling_factor
    return {"unet": unet_flops(unet, side, TOKENS), **autoencoder_flops(autoencoder, side)}
