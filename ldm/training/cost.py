"""What a step costs, counted on networks that take no memory, and what that means on GPUs of a kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ldm.conditioning.classes import ClassEmbedder
from ldm.conditioning.image.encoders import make_image_encoder
from ldm.conditioning.spatial import make_spatial
from ldm.conditioning.text.encoder import make_text_encoder
from ldm.config.root import Config
from ldm.config.training import StageConfig
from ldm.errors import UserError
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.classifier import Classifier
from ldm.models.discriminator import PatchDiscriminator
from ldm.models.unet.unet import UNet
from ldm.training import image_embedding
from ldm.training.checkpointing import checkpoint_gradients
from ldm.training.classes import tell_classes, tell_token
from ldm.training.conditions import Conditioned, Teller, tell_nothing
from ldm.training.optim.groups import freeze, inner_matrices
from ldm.training.spatial import rescale_and_tell, tell_joined
from ldm.training.stages.autoencoder import Reconstruction
from ldm.training.texts import encode_and_tell, tell_context

# Dense bf16 (T4, V100: fp16) matrix rates in TFLOP/s, of the makers' data sheets.
PEAK = {"t4": 65, "v100": 125, "a10": 125, "l4": 121, "rtx3090": 71, "rtx4090": 165, "l40s": 362}
PEAK |= {"a100": 312, "h100": 989, "h200": 989, "b200": 2250}
UTILISATION = 0.35  # share of the peak that training such networks reaches, as published runs report 0.3 to 0.45


@dataclass(frozen=True)
class StepCost:
    """Of one image in one step."""

    parameters: dict[str, int]  # of each network
    trained: int  # parameters that have gradients
    flops: int  # forward, backward, and what has no gradient
    activations: int  # bytes kept for the backward pass, in float32
    matrices: int = 0  # of the trained parameters, those of which Muon keeps one moment


def step_cost(stage: str, config: Config) -> StepCost:
    """Count the parameters, operations and activations of a stage; UserError for what cannot be trained."""
    with torch.device("meta"):
        return {"unet": _unet_cost, "autoencoder": _autoencoder_cost, "classifier": _classifier_cost}[stage](config)


def seconds_on(flops: float, gpus: int, gpu: str) -> float:
    """Seconds of that many operations on `gpus` GPUs of a kind out of `PEAK`; UserError for another kind."""
    if gpu not in PEAK:
        raise UserError(f"--gpu {gpu!r} is not known: one of {', '.join(PEAK)}")
    return flops / (gpus * PEAK[gpu] * 1e12 * UTILISATION)


def memory(settings: StageConfig, cost: StepCost) -> float:
    """Bytes of weights, gradients, optimiser and averages in one process; activations come on top."""
    total = sum(cost.parameters.values())
    averages = 0 if settings.ema_device == "cpu" else 4 * total * (1 + len(settings.ema_others))
    moments = (2 if settings.optimizer == "adamw8bit" else 8) * cost.trained
    if settings.optimizer == "muon":
        moments -= 4 * cost.matrices
    return 4 * total + 4 * cost.trained + moments + averages


def _unet_cost(config: Config) -> StepCost:
    settings, side = config.training.unet, config.data.size
    unet = UNet(config.need_unet())
    small = side // config.autoencoder.downsampling_factor
    noisy, t = torch.empty(1, config.autoencoder.latent_channels, small, small), torch.zeros(1)
    if strangers := [name for name in config.told if name not in CONDITIONS]:
        raise UserError(f"train-unet cannot train with {', '.join(strangers)}: it knows {', '.join(CONDITIONS)}")
    told = [CONDITIONS[name](config) for name in config.told]
    trained = {name: part for one in told for name, part in one.trained.items()}
    network = Conditioned(unet, trained, [one.teller for one in told])
    freeze(network, settings.freeze)
    inputs = [one.inputs for one in told]
    flops, activations = _measured(network, lambda: network(noisy, t, *inputs), settings)
    flops += sum(one.flops for one in told)
    flops += 0 if settings.cache_latents else _encoding(config)
    parts = {"U-Net": unet} | {name.replace("_", " "): part for name, part in trained.items()}
    return StepCost(_sizes(parts), _trained(network), flops, activations, _matrices(network))


@dataclass(frozen=True)
class Told:
    """A condition of one image, without weights or data."""

    teller: Teller
    inputs: tuple[Tensor, ...] = ()
    trained: dict[str, nn.Module] = field(default_factory=dict)  # by their names in a pipeline
    flops: int = 0  # outside of the trained network


def _text(config: Config) -> Told:
    assert config.text is not None
    encoder = make_text_encoder(config.text)
    ids = torch.zeros(1, config.text.max_length, dtype=torch.long)
    if config.text.frozen:
        flops, context = _forward(lambda: encoder(ids, torch.ones_like(ids)).context)
        return Told(tell_context, (context,), flops=flops)
    return Told(encode_and_tell, (ids, torch.ones_like(ids)), {"text_encoder": encoder})


def _rescaler(config: Config) -> Told:
    assert config.spatial is not None
    maps = torch.zeros(1, config.data.size, config.data.size, dtype=torch.uint8)
    return Told(rescale_and_tell, (maps,), {"spatial": make_spatial(config.spatial)})


def _inpainting(config: Config) -> Told:
    autoencoder, images = Autoencoder(config.autoencoder), torch.empty(1, 3, config.data.size, config.data.size)
    flops = _forward(lambda: autoencoder.encode(images).mode())[0]
    return replace(_low_resolution(config), flops=flops)


def _low_resolution(config: Config) -> Told:
    assert config.spatial is not None
    small = config.data.size // config.autoencoder.downsampling_factor
    return Told(tell_joined, (torch.empty(1, config.spatial.channels, small, small),))


def _token(config: Config) -> Told:
    assert config.classes is not None
    return Told(tell_token, (torch.zeros(1, dtype=torch.long),), {"classes": ClassEmbedder(config.classes)})


def _image(config: Config) -> Told:
    assert config.image is not None
    encoder, side = make_image_encoder(config.image), config.data.size
    small = side // config.autoencoder.downsampling_factor
    given = torch.empty(1, config.autoencoder.latent_channels, small, small)
    given, kept = given if encoder.takes_latents else torch.empty(1, 3, side, side), torch.ones(1, 1, 1)
    if config.image.frozen:
        flops, context = _forward(lambda: encoder(given))
        return Told(image_embedding.tell_what_is_kept, (context, kept), flops=flops)
    return Told(image_embedding.encode_and_tell, (given, kept), {"image_encoder": encoder})


CONDITIONS: dict[str, Callable[[Config], Told]] = {
    "text": _text,
    "classes": _token,
    "class_table": lambda config: Told(tell_classes, (torch.zeros(1, dtype=torch.long),)),
    "image": _image,
    "segmentation_map": _rescaler,
    "inpainting": _inpainting,
    "low_resolution": _low_resolution,
    "nothing": lambda config: Told(tell_nothing),
}


def _classifier_cost(config: Config) -> StepCost:
    settings, side = config.training.classifier, config.data.size
    network = Classifier(config.need_classifier())
    small = side // config.autoencoder.downsampling_factor
    noisy, t = torch.empty(1, config.autoencoder.latent_channels, small, small), torch.zeros(1)
    freeze(network, settings.freeze)
    flops, activations = _measured(network, lambda: network(noisy, t), settings)
    flops += 0 if settings.cache_latents else _encoding(config)
    return StepCost(_sizes({"classifier": network}), _trained(network), flops, activations, _matrices(network))


def _encoding(config: Config) -> int:
    """Operations of an image's way through the encoder."""
    autoencoder, given = Autoencoder(config.autoencoder), torch.empty(1, 3, config.data.size, config.data.size)
    return _forward(lambda: autoencoder.encode(given).mode())[0]


def _autoencoder_cost(config: Config) -> StepCost:
    settings, adversarial = config.training.autoencoder, config.loss.adversarial
    network = Reconstruction(Autoencoder(config.autoencoder), config.loss)
    freeze(network, settings.freeze)
    side = config.data.size // config.autoencoder.downsampling_factor
    images = torch.empty(1, config.autoencoder.in_channels, config.data.size, config.data.size)
    noise = torch.empty(1, config.autoencoder.latent_channels, side, side)
    flops, activations = _measured(network, lambda: network(images, noise)[0], settings)
    parts, trained = {"autoencoder": network.autoencoder}, _trained(network)
    if adversarial.weight:
        discriminator = PatchDiscriminator(adversarial, config.autoencoder.in_channels)
        one, kept = _measured(discriminator, lambda: discriminator(images)[0], settings)
        # Real and made images forward and backward, and made ones once more for the generator.
        flops, activations = flops + 3 * one, activations + kept
        if adversarial.r1_weight:  # a gradient as a forward pass of its own, and backward through both
            flops += 2 * one // adversarial.r1_every
        parts, trained = parts | {"discriminator": discriminator}, trained + _trained(discriminator)
    return StepCost(_sizes(parts), trained, flops, activations)


def _measured(network: nn.Module, run: Callable[[], Tensor], settings: StageConfig) -> tuple[int, int]:
    """Operations of a forward and backward pass, and the bytes it keeps from one to the other besides weights."""
    if settings.gradient_checkpointing:
        checkpoint_gradients(network)
    weights = {id(weight) for weight in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in weights:
            kept[id(tensor)] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = run()
        size = sum(tensor.numel() * tensor.element_size() for tensor in kept.values())
        out.sum().backward()
    return counter.get_total_flops(), size


def _forward(run: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """Operations of a forward pass without gradients, and its result."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = run()
    return counter.get_total_flops(), out


def _sizes(networks: dict[str, nn.Module]) -> dict[str, int]:
    return {name: sum(weight.numel() for weight in network.parameters()) for name, network in networks.items()}


def _trained(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad)


def _matrices(network: nn.Module) -> int:
    inner = inner_matrices(network)
    return sum(weight.numel() for name, weight in network.named_parameters() if name in inner and weight.requires_grad)
