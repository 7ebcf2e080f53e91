"""Networks of real sizes with random weights, and diffusers' networks with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ldm.bench.workload import Run
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
from ldm.models.cost import autoencoder_flops, denoiser_flops
from ldm.models.fast import prepare_for_sampling
from ldm.models.unet.fields import unet_to_fields
from ldm.models.unet.unet import UNet
from ldm.storage.fields import EXTRA, Fields

N = TypeVar("N", bound=nn.Module)
M = TypeVar("M", UNet, Autoencoder)

Prepare = Callable[[Any, torch.dtype], Any]

TOKENS = 77  # length of CLIP's text


def random_network(make: Callable[[], N], seed: int = 0) -> N:
    """Build a network in evaluation mode with random weights, also where they are zero at initialization.

    Weights are small enough for finite outputs.
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
    """Return diffusers' UNet2DConditionModel, which shares the weights' memory."""
    from diffusers import UNet2DConditionModel

    return _with_weights(UNet2DConditionModel, unet_to_fields(unet.config), unet)


def their_autoencoder(autoencoder: Autoencoder) -> Any:
    """Return diffusers' AutoencoderKL, which shares the weights' memory."""
    from diffusers import AutoencoderKL

    return _with_weights(AutoencoderKL, autoencoder_to_fields(autoencoder.config), autoencoder)


def their_text_encoder(encoder: TextEncoder, folder: Path) -> Any:
    """Return transformers' CLIPTextModel with the same weights, which are saved to a folder and loaded."""
    from transformers import CLIPTextModel

    save_text_encoder(encoder, folder)
    return CLIPTextModel.from_pretrained(folder).eval().requires_grad_(False)


def their_scheduler(diffusion: DiffusionConfig) -> Any:
    """Return diffusers' DDIMScheduler with the same schedule."""
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_config(_known(scheduler_to_fields(diffusion)))


def _with_weights(kind: Any, fields: Fields, network: nn.Module) -> Any:
    from diffusers.utils import logging

    logging.set_verbosity_error()  # it warns about every conversion
    with on_meta():
        theirs = kind.from_config(_known(fields))
    theirs.load_state_dict(network.state_dict(), assign=True)
    return theirs.eval()


def _known(fields: Fields) -> Fields:
    """Remove fields that diffusers does not know."""
    return {name: value for name, value in fields.items() if name != EXTRA}


def converted(network: N, dtype: torch.dtype) -> N:
    """Return the network itself for float32, else a copy with weights of another type."""
    return network if dtype == torch.float32 else deepcopy(network).to(dtype)


def prepared(network: M, dtype: torch.dtype) -> M:
    """Prepare a network of ours as `TextToImage` does: for inference and, on a GPU, compiled."""
    made = prepare_for_sampling(network, dtype)
    if next(network.parameters()).device.type == "cuda":
        compile_blocks(made)
    return made


def with_cuda_graphs(unet: UNet) -> UNet | CUDAGraphUNet:
    """Wrap a U-Net in CUDA graphs on a GPU."""
    return CUDAGraphUNet(unet) if next(unet.parameters()).device.type == "cuda" else unet


def tuned_network(network: Any, dtype: torch.dtype) -> Any:
    """Prepare a network of diffusers as its users can: dtype, channels-last and, on a GPU, the compiler."""
    network = converted(network, dtype).to(memory_format=torch.channels_last)
    if next(network.parameters()).device.type == "cuda":
        network.compile(mode="max-autotune")
    return network


def sides_of_diffusers(run: Callable[[Prepare, torch.dtype], Run], dtype: torch.dtype) -> dict[str, Any]:
    """Return the sides of a `Workload` in diffusers: defaults in float32, tuned, and defaults in bfloat16.

    Args:
        run: makes the run of a side from a function that prepares networks for a dtype.
    """
    sides = {"theirs": run(converted, torch.float32), "tuned": run(tuned_network, dtype)}
    return sides | ({"theirs_bf16": run(converted, dtype)} if dtype == torch.bfloat16 else {})


def operations(config: Config) -> dict[str, int]:
    """Count the operations of each network of a configuration on one sample: `unet`, `encode` and `decode`.

    These are the operations of the plain networks: what ours computes once per prompt counts in every call.
    """
    with on_meta():
        unet, autoencoder = UNet(config.denoiser), Autoencoder(config.autoencoder)
    side = config.data.size // config.autoencoder.downsampling_factor
    return {"unet": denoiser_flops(unet, side, TOKENS), **autoencoder_flops(autoencoder, side)}
