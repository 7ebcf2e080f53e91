"""The answer of `ldm info` as one document of raw numbers."""

from __future__ import annotations

from typing import Any

from ldm.config.root import Config
from ldm.info.cost import flops, make_networks, training_memory
from ldm.info.describe import Description
from ldm.info.parameters import of_network, totals
from ldm.models.autoencoder.config import AutoencoderConfig

Report = dict[str, Any]

ORDER = ("autoencoder", "unet", "text", "text_2", "classes", "spatial")  # that of the report's parts


def report(description: Description) -> Report:
    """All numbers of a description, in plain values: parameters, bytes and operations are integers."""
    contents, side = description.contents, description.latent_side
    stored = description.stored or {}
    networks = make_networks(contents, but=stored.keys() - {"unet", "autoencoder"})  # those have calls to be counted
    counts = {name: of_network(network) for name, network in networks.items()} | stored
    parameters = {name: totals(name, counts[name]) for name in sorted(counts, key=_place)}
    whole = {name: found["total"] for name, found in parameters.items()}
    total = sum(whole.values())
    facts: Report = {"target": description.target, "kind": description.kind}
    facts["parameters"] = parameters | {"total": total}
    facts["memory"] = {"float32": 4 * total, "bfloat16": 2 * total, "training": training_memory(description, whole)}
    if side is not None:
        facts |= _shapes(description, side)
        facts["flops"] = flops(contents, networks, side, description.tokens)
    if contents.autoencoder is not None:
        facts["latent_statistics"] = statistics(contents.autoencoder)
    if contents.diffusion is not None and (contents.unet is not None or description.stored is not None):
        facts["diffusion"] = contents.diffusion.model_dump(mode="json")
    if description.config is not None and description.stage is not None:
        facts["training"] = _training(description.config, description.stage, description.step)
    if description.notes:
        facts["notes"] = description.notes
    return facts


def _place(name: str) -> tuple[int, str]:
    """What we know first, then what else there is, by name."""
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


def statistics(config: AutoencoderConfig) -> Report:
    """How an autoencoder scales its latents; null where nothing was measured."""
    return config.model_dump(mode="json", include={"scaling_factor", "shift_factor"})


def _shapes(description: Description, side: int) -> Report:
    contents = description.contents
    shapes: Report = {}
    if contents.autoencoder is not None:
        config = contents.autoencoder
        shapes["image"] = [config.in_channels, *(2 * [side * config.downsampling_factor])]
        shapes["latents"] = [config.latent_channels, side, side]
    elif contents.unet is not None:
        shapes["latents"] = [min(contents.unet.in_channels, contents.unet.out_channels), side, side]
    if contents.unet is not None and contents.unet.cross_attention_dim is not None:
        shapes["context"] = [description.tokens, contents.unet.cross_attention_dim]
    return shapes


def _training(config: Config, stage: str, step: int | None) -> Report:
    settings = getattr(config.training, stage)
    names = ("max_steps", "batch_size", "learning_rate", "mixed_precision", "ema_decay")
    done = {} if step is None else {"step": step}
    return {"stage": stage, **done, **{name: getattr(settings, name) for name in names}, "size": config.data.size}
