"""Cost of a training step, counted on the meta device, and its time on GPUs of a kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from ldm.conditioning.classes import ClassEmbedder
from ldm.conditioning.image.encoders import make_image_encoder
from ldm.conditioning.spatial import make_spatial
from ldm.conditioning.text.encoder import make_text_encoder
from ldm.config.losses import loss_networks
from ldm.config.root import Config
from ldm.config.training import ClassifierStageConfig, StageConfig, UNetStageConfig
from ldm.devices import on_meta
from ldm.errors import UserError
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.classifier import Classifier
from ldm.models.cost import ADAM, FLOAT32, count_forward, count_forward_backward, count_parameters, training_memory
from ldm.models.unet.unet import UNet
from ldm.training import image_embedding
from ldm.training.checkpointing import checkpoint_gradients
from ldm.training.classes import tell_classes, tell_token
from ldm.training.conditions import Conditioned, Teller, tell_nothing
from ldm.training.optim.groups import freeze, inner_matrices
from ldm.training.spatial import rescale_and_tell, tell_joined
from ldm.training.stages.autoencoder import Reconstruction
from ldm.training.texts import encode_and_tell, tell_context

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
    """Bytes of weights, gradients, optimizer moments and averages in one process, without activations."""
    total = sum(cost.parameters.values())
    averages = 0 if settings.ema_device == "cpu" else total * (1 + len(settings.ema_others))
    moments = (2 if settings.optimizer == "adamw8bit" else ADAM) * cost.trained
    if settings.optimizer == "muon":
        moments -= FLOAT32 * cost.matrices
    return training_memory(cost.trained, averages, total - cost.trained, moments)


def _unet_cost(config: Config) -> StepCost:
    unet, conditionings = UNet(config.need_unet()), conditioning_inputs(config)
    trained = {name: part for each in conditionings for name, part in each.trained.items()}
    network = Conditioned(unet, trained, [each.conditioning_fn for each in conditionings])
    parts = {"U-Net": unet} | {name.replace("_", " "): part for name, part in trained.items()}
    cost = _latent_cost(config, config.training.unet, network, parts, *(each.inputs for each in conditionings))
    return replace(cost, flops=cost.flops + sum(each.flops for each in conditionings))


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
    flops, activations = _step(network, lambda: network(noisy, t, *inputs), settings)
    flops += 0 if settings.cache_latents else _encoding(config)
    inner = inner_matrices(network)
    matrices = sum(w.numel() for name, w in network.named_parameters() if name in inner and w.requires_grad)
    return StepCost(_sizes(parts), count_parameters(network, trained_only=True), flops, activations, matrices)


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
    """Operations of encoding one image to latents."""
    autoencoder, images = Autoencoder(config.autoencoder), _images(config)
    return count_forward(lambda: autoencoder.encode(images).mode())[0]


@dataclass(frozen=True)
class ConditioningInputs:
    """Training inputs of a conditioning for one image, without weights or data."""

    conditioning_fn: Teller
    inputs: tuple[Tensor, ...] = ()
    trained: dict[str, nn.Module] = field(default_factory=dict)  # by name in a pipeline
    flops: int = 0  # outside of the trained network


def conditioning_inputs(config: Config) -> list[ConditioningInputs]:
    """Return the inputs of each conditioning of the denoiser."""
    if unknown := [name for name in config.told if name not in CONDITIONINGS]:
        raise UserError(f"train-unet cannot train with {', '.join(unknown)}: choose from {', '.join(CONDITIONINGS)}")
    return [CONDITIONINGS[name](config) for name in config.told]


def _text(config: Config) -> ConditioningInputs:
    assert config.text is not None
    encoder = make_text_encoder(config.text)
    ids = torch.zeros(1, config.text.max_length, dtype=torch.long)
    if config.text.frozen:
        flops, context = count_forward(lambda: encoder(ids, torch.ones_like(ids)).context)
        return ConditioningInputs(tell_context, (context,), flops=flops)
    return ConditioningInputs(encode_and_tell, (ids, torch.ones_like(ids)), {"text_encoder": encoder})


def _segmentation_map(config: Config) -> ConditioningInputs:
    assert config.spatial is not None
    maps = torch.zeros(1, config.data.size, config.data.size, dtype=torch.uint8)
    return ConditioningInputs(rescale_and_tell, (maps,), {"spatial": make_spatial(config.spatial)})


def _concat(config: Config, flops: int = 0) -> ConditioningInputs:
    assert config.spatial is not None
    return ConditioningInputs(tell_joined, (_latents(config, config.spatial.channels),), flops=flops)


def _image(config: Config) -> ConditioningInputs:
    assert config.image is not None
    encoder, kept = make_image_encoder(config.image), torch.ones(1, 1, 1)
    images = _latents(config, config.autoencoder.latent_channels) if encoder.takes_latents else _images(config)
    if config.image.frozen:
        flops, context = count_forward(lambda: encoder(images))
        return ConditioningInputs(image_embedding.tell_what_is_kept, (context, kept), flops=flops)
    return ConditioningInputs(image_embedding.encode_and_tell, (images, kept), {"image_encoder": encoder})


def _token(config: Config) -> ConditioningInputs:
    assert config.classes is not None
    return ConditioningInputs(tell_token, (_label(),), {"classes": ClassEmbedder(config.classes)})


def _label() -> Tensor:
    return torch.zeros(1, dtype=torch.long)


CONDITIONINGS: dict[str, Callable[[Config], ConditioningInputs]] = {
    "text": _text,
    "classes": _token,
    "class_table": lambda config: ConditioningInputs(tell_classes, (_label(),)),
    "image": _image,
    "segmentation_map": _segmentation_map,
    "inpainting": lambda config: _concat(config, flops=_encoding(config)),
    "low_resolution": _concat,
    "nothing": lambda config: ConditioningInputs(tell_nothing),
}
