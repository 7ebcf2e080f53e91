"""The report of `ldm info`: one document of raw numbers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from ldm.checkpoint.compvis.contents import Contents
from ldm.config.losses import loss_networks
from ldm.config.root import Config
from ldm.devices import on_meta
from ldm.info.describe import Description
from ldm.info.parameters import totals
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.cost import autoencoder_flops, count_parameters, denoiser_flops, training_memory
from ldm.models.denoiser import DenoiserNetwork

Report = dict[str, Any]

ORDER = ("autoencoder", "unet", "text", "text_2", "classes", "spatial")  # of known parts; others follow by name


def report(description: Description) -> Report:
    """Return all numbers of a description as plain values; parameters, bytes and operations are integers."""
    contents, side, stored = description.contents, description.latent_side, description.stored or {}
    networks = make_networks(contents, skip=stored.keys() - {"unet", "autoencoder"})  # whose operations are counted
    counts = {
        name: {key: weight.numel() for key, weight in network.named_parameters()} for name, network in networks.items()
    } | stored
    names = sorted(counts, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    parameters = {name: totals(name, counts[name]) for name in names}
    by_name = {name: part["total"] for name, part in parameters.items()}
    total = sum(by_name.values())
    facts: Report = {"target": description.target, "kind": description.kind}
    facts["parameters"] = parameters | {"total": total}
    facts["memory"] = {"float32": 4 * total, "bfloat16": 2 * total, "training": _training_memory(description, by_name)}
    if side is not None:
        facts |= _shapes(description, side)
        facts["flops"] = _flops(networks, side, description.tokens)
    if contents.autoencoder is not None:
        facts["latent_statistics"] = latent_statistics(contents.autoencoder)
    if contents.diffusion is not None and (contents.unet is not None or description.stored is not None):
        facts["diffusion"] = contents.diffusion.model_dump(mode="json")
    if description.config is not None and description.stage is not None:
        facts["training"] = _training(description.config, description.stage, description.step)
    if description.is_pipeline:
        facts["generates"] = description.problem or "yes"
    return facts | ({"notes": description.notes} if description.notes else {})


def make_networks(contents: Contents, skip: Collection[str] = ()) -> dict[str, nn.Module]:
    """Build the networks of all sections, except those to skip, on the meta device."""
    with on_meta():
        return {name: contents.make(name).eval() for name in contents.networks if name not in skip}


def latent_statistics(config: AutoencoderConfig) -> Report:
    """Return how an autoencoder scales its latents; None where nothing was measured."""
    return config.model_dump(mode="json", include={"scaling_factor", "shift_factor"})


def _flops(networks: dict[str, nn.Module], side: int, tokens: int) -> dict[str, int]:
    counted = {}
    if isinstance(network := networks.get("unet"), DenoiserNetwork):
        counted["unet"] = denoiser_flops(network, side, tokens)
    if isinstance(autoencoder := networks.get("autoencoder"), Autoencoder):
        counted |= autoencoder_flops(autoencoder, side)
    return counted


def _training_memory(description: Description, counts: dict[str, int]) -> dict[str, int]:
    """Return bytes to train each stage with Adam and one EMA.

    A frozen text encoder, and the autoencoder of a U-Net's latents, take their weights only.
    """
    stages = {}
    if "autoencoder" in counts:
        trained = counts["autoencoder"] + _loss_parameters(description.config)
        stages["autoencoder"] = training_memory(trained, averages=trained)
    if "unet" in counts:
        texts = {"text": description.contents.text, "text_2": description.contents.text_2}
        frozen = {"autoencoder"} | {name for name, text in texts.items() if text is not None and text.frozen}
        beside = sum(count for name, count in counts.items() if name in frozen)
        known = sum(count for name, count in counts.items() if name in Contents.model_fields)
        stages["unet"] = training_memory(known - beside, averages=known - beside, frozen=beside)
    return stages


def _loss_parameters(config: Config | None) -> int:
    """Count the parameters of networks that the loss of an autoencoder trains, such as a discriminator."""
    if config is None:
        return 0
    with on_meta():
        networks = loss_networks(config.loss, config.autoencoder)
        return sum(count_parameters(network) for network, _ in networks.values())


def _shapes(description: Description, side: int) -> Report:
    autoencoder, unet = description.contents.autoencoder, description.contents.unet
    shapes: Report = {}
    if autoencoder is not None:
        shapes["image"] = [autoencoder.in_channels, *(2 * [side * autoencoder.downsampling_factor])]
        shapes["latents"] = [autoencoder.latent_channels, side, side]
    elif unet is not None:
        shapes["latents"] = [min(unet.in_channels, unet.out_channels), side, side]
    if unet is not None and unet.context_width is not None:
        shapes["context"] = [description.tokens, unet.context_width]
    return shapes


def _training(config: Config, stage: str, step: int | None) -> Report:
    settings = getattr(config.training, stage)
    names = ("max_steps", "batch_size", "learning_rate", "mixed_precision", "ema_decay")
    done = {} if step is None else {"step": step}
    return {"stage": stage, **done, **{name: getattr(settings, name) for name in names}, "size": config.data.size}
