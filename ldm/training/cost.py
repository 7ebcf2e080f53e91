"""Cost of a training step, counted on the meta device, and its time on GPUs of a kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ldm.conditioning.conditional_denoiser import ConditionalDenoiser
from ldm.config.losses import loss_networks
from ldm.config.root import Config
from ldm.config.training import ClassifierStageConfig, StageConfig, UNetStageConfig
from ldm.devices import on_meta
from ldm.errors import UserError
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.classifier import Classifier
from ldm.models.cost import ADAM, FLOAT32, count_forward, count_forward_backward, count_parameters, training_memory
from ldm.training.checkpointing import checkpoint_gradients
from ldm.training.optim.groups import freeze, inner_matrices
from ldm.training.stages.autoencoder import Reconstruction

# Dense bf16 (T4, V100: fp16) matrix rates in TFLOP/s, from the vendors' data sheets.
PEAK = {"t4": 65, "v100": 125, "a10": 125, "l4": 121, "rtx3090": 71, "rtx4090": 165, "l40s": 362}
PEAK |= {"a100": 312, "h100": 989, "h200": 989, "b200": 2250}
UTILISATION = 0.35  # fraction of the peak that training such networks reaches; published runs report 0.3 to 0.45


@dataclass(frozen=True)
class StepCost:
    """Cost of one image in one training step."""

    parameters: dict[str, int]  # of each network
    trained: int  # parameters with gradients
    flops: int  # forward, backward, and forward passes of frozen networks
    activations: int  # bytes kept for the backward pass, in float32
    matrices: int = 0  # trained parameters for which Muon keeps one moment


def step_cost(stage: str, config: Config) -> StepCost:
    """Count the parameters, operations and activations of a stage.

    Raises:
        UserError: if the configuration cannot be trained.
    """
    with on_meta():
        return {"unet": _unet_cost, "autoencoder": _autoencoder_cost, "classifier": _classifier_cost}[stage](config)


def seconds_on(flops: float, gpus: int, gpu: str) -> float:
    """Estimate the seconds that operations take on `gpus` GPUs of a kind in `PEAK`."""
    if gpu not in PEAK:
        raise UserError(f"--gpu {gpu!r} is unknown: choose one of {', '.join(PEAK)}")
    return flops / (gpus * PEAK[gpu] * 1e12 * UTILISATION)


def memory(settings: StageConfig, cost: StepCost) -> float:
    """Return bytes of weights, gradients, optimizer moments and averages in one process, without activations."""
    total = sum(cost.parameters.values())
    averages = 0 if settings.ema_device == "cpu" else total * (1 + len(settings.ema_others))
    moments = (2 if settings.optimizer == "adamw8bit" else ADAM) * cost.trained
    if settings.optimizer == "muon":
        moments -= FLOAT32 * cost.matrices
    return training_memory(cost.trained, averages, total - cost.trained, moments)


def _unet_cost(config: Config) -> StepCost:
    denoiser = config.denoiser_class(config.denoiser)
    metas = [kind.meta(config) for kind in config.conditionings]
    trained = {name: module for each in metas for name, module in each.modules.items()}
    functions = [kind.conditioning_fn(config) for kind in config.conditionings]
    network = ConditionalDenoiser(denoiser, str(config.denoiser_name), trained, functions)
    parts = {"U-Net" if config.unet else str(config.denoiser_name): denoiser} | {
        name.replace("_", " "): module for name, module in trained.items()
    }
    cost = _latent_cost(config, config.training.unet, network, parts, *(each.inputs for each in metas))
    frozen = [each.frozen for each in metas if each.frozen is not None]
    return replace(cost, flops=cost.flops + sum(count_forward(forward)[0] for forward in frozen))


def _classifier_cost(config: Config) -> StepCost:
    network = Classifier(config.need_classifier())
    return _latent_cost(config, config.training.classifier, network, {"classifier": network})


def _latent_cost(
    config: Config,
    settings: UNetStageConfig | ClassifierStageConfig,
    network: nn.Module,
    parts: dict[str, nn.Module],
    *inputs: tuple[Tensor, ...],
) -> StepCost:
    """Cost of training a network on noisy latents, which are encoded in each step unless they are cached."""
    freeze(network, settings.freeze)
    noisy, t = _latents(config, config.autoencoder.latent_channels), torch.zeros(1)
    flops, activations = _step(network, lambda: _output(network(noisy, t, *inputs)), settings)
    flops += 0 if settings.cache_latents else _encoding(config)
    inner = inner_matrices(network)
    matrices = sum(w.numel() for name, w in network.named_parameters() if name in inner and w.requires_grad)
    return StepCost(_sizes(parts), count_parameters(network, trained_only=True), flops, activations, matrices)


def _output(found: Tensor | tuple[Tensor, object]) -> Tensor:
    return found[0] if isinstance(found, tuple) else found


def _autoencoder_cost(config: Config) -> StepCost:
    settings = config.training.autoencoder
    network = Reconstruction(Autoencoder(config.autoencoder), config.loss)
    freeze(network, settings.freeze)
    images, noise = _images(config), _latents(config, config.autoencoder.latent_channels)
    flops, activations = _step(network, lambda: network(images, noise)[0], settings)
    parts: dict[str, nn.Module] = {"autoencoder": network.autoencoder}
    trained = count_parameters(network, trained_only=True)
    for name, (other, passes) in loss_networks(config.loss, config.autoencoder).items():
        one, kept = _step(other, partial(_first_output, other, images), settings)
        flops, activations = flops + int(one * passes), activations + kept
        parts[name] = other
        trained += count_parameters(other, trained_only=True)
    return StepCost(_sizes(parts), trained, flops, activations)


def _first_output(network: nn.Module, images: Tensor) -> Tensor:
    return network(images)[0]


def _step(network: nn.Module, run: Callable[[], Tensor], settings: StageConfig) -> tuple[int, int]:
    if settings.gradient_checkpointing:
        checkpoint_gradients(network)
    return count_forward_backward(network, run)


def _sizes(networks: dict[str, nn.Module]) -> dict[str, int]:
    return {name: count_parameters(network) for name, network in networks.items()}


def _images(config: Config) -> Tensor:
    return torch.empty(1, config.autoencoder.in_channels, config.data.size, config.data.size)


def _latents(config: Config, channels: int) -> Tensor:
    side = config.data.size // config.autoencoder.downsampling_factor
    return torch.empty(1, channels, side, side)


def _encoding(config: Config) -> int:
    """Return operations of encoding one image to latents."""
    autoencoder, images = Autoencoder(config.autoencoder), _images(config)
    return count_forward(lambda: autoencoder.encode(images).mode())[0]
