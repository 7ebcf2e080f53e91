"""Cost of networks: floating-point operations, parameters and memory, without computing anything.

A multiplication and an addition are two operations. Operations are counted on networks on the meta device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ldm.devices import ShapesOnly, on_meta
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.denoiser import DenoiserNetwork

T = TypeVar("T")

FLOAT32 = 4  # bytes
ADAM = 2 * FLOAT32  # bytes of the two moments of a parameter
COPIES = 8  # of its widest feature map that a network holds at a time: concatenated, normalized, activated, convolved


def count_parameters(network: nn.Module, trained_only: bool = False) -> int:
    """Count the parameters of a network, or only those that require gradients."""
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad or not trained_only)


def count_forward(run: Callable[[], T]) -> tuple[int, T]:
    """Return the operations of a forward pass without gradients, and its result."""
    with torch.no_grad(), ShapesOnly(), FlopCounterMode(display=False) as counter:
        result = run()
    return counter.get_total_flops(), result


def count_forward_backward(network: nn.Module, run: Callable[[], Tensor]) -> tuple[int, int]:
    """Return the operations of a forward and backward pass, and the bytes of activations kept between them."""
    weights = {_storage(weight) for weight in network.parameters()}
    kept: dict[int, Tensor] = {}  # by storage, which views of a tensor share

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            kept[_storage(tensor)] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = run()
        activations = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        output.sum().backward()
    return counter.get_total_flops(), activations


def denoiser_flops(network: DenoiserNetwork, side: int, tokens: int) -> int:
    """Count the operations of one call on latents of `side` x `side` and a context of `tokens`, with a batch of one."""
    with on_meta():
        inputs = network.example_inputs(side, tokens)
    return count_forward(lambda: network(**inputs))[0]


def autoencoder_flops(autoencoder: Autoencoder, side: int) -> dict[str, int]:
    """Count the operations to encode one image to latents of `side` x `side`, and to decode them."""
    config = autoencoder.config
    with on_meta():
        images = torch.empty(1, config.in_channels, *(2 * [side * config.downsampling_factor]))
        latents = torch.empty(1, config.latent_channels, side, side)
    return {
        "encode": count_forward(lambda: autoencoder.encode(images))[0],
        "decode": count_forward(lambda: autoencoder.decode(latents))[0],
    }


def training_memory(trained: int, averages: int, frozen: int = 0, moments: int | None = None) -> int:
    """Return bytes of weights, gradients, optimizer moments and averages in float32, without activations.

    Args:
        trained: number of trained parameters.
        averages: number of parameters in all EMA copies on the device.
        frozen: number of parameters without gradients.
        moments: bytes of the optimizer's moments; by default those of Adam.
    """
    return FLOAT32 * (2 * trained + frozen + averages) + (ADAM * trained if moments is None else moments)


def image_memory(
    unet: DenoiserNetwork, autoencoder: Autoencoder, shape: tuple[int, int, int], rows: int, backward: bool = False
) -> float:
    """Estimate the bytes of activations that generating one image takes, in the U-Net or in the decoder.

    Args:
        shape: latents (C, h, w) of the image.
        rows: rows in the U-Net's batch for the image.
        backward: whether a gradient flows through both networks, whose feature maps are then all kept.
    """
    denoising = rows * unet.config.activations(backward) * _element_size(unet)
    decoding = decoder_width(autoencoder.config, backward) * _element_size(autoencoder)
    return shape[1] * shape[2] * (denoising + decoding if backward else max(denoising, decoding))


def decoder_width(config: AutoencoderConfig, backward: bool = False) -> float:
    """Return the decoder's values in memory per latent position: its largest feature map or, for `backward`, all."""
    channels, factor = config.block_out_channels, config.downsampling_factor
    inputs = (*channels[1:], channels[-1])  # a level receives the channels of the coarser one
    maps = [width * (factor / 2**level) ** 2 for level, width in enumerate(inputs)]
    return COPIES * ((config.layers_per_block + 1) * sum(maps) if backward else max(maps))


def _storage(tensor: Tensor) -> int:
    """Identify the storage of a tensor; `data_ptr()` is 0 on the meta device."""
    return tensor.untyped_storage()._cdata


def _element_size(network: nn.Module) -> int:
    """Return bytes of a value; 0 for a network without parameters, which computes nothing."""
    return next((weight.element_size() for weight in network.parameters()), 0)
