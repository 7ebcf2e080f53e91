"""Which weights are trained, at which rate, by which optimiser."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ldm.config.training import StageConfig
from ldm.errors import UserError
from ldm.training.optim.muon import Muon

PARTS = {"text": "text_encoder"}  # names of parts that differ from those of their modules
# Layers by which images, latents, maps or told numbers enter a network, or what it predicts leaves it.
ENDS = {"conv_in", "patch_embedding", "channel_mapper", "class_embedding", "conv_out", "head", "to_logits"}
Key = TypeVar("Key")


def freeze(network: nn.Module, patterns: Sequence[str]) -> None:
    """Take weights out of training, by the name of a part or a pattern of names; UserError where none is left."""
    weights = dict(network.named_parameters())
    for pattern in patterns:
        for name in _matching(pattern, list(weights), "freeze"):
            weights[name].requires_grad_(False)
    if not any(weight.requires_grad for weight in network.parameters()):
        raise UserError("freeze leaves no weight to train")


def parameter_groups(network: nn.Module, rate: float, rates: Mapping[str, float], config: StageConfig) -> list[dict]:
    """The trainable weights in groups of one learning rate each: that of the last key of `rates` that names them.

    For Muon, matrices inside of the network are in groups of their own, which say `orthogonal`.
    """
    weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    rate_of = dict.fromkeys(weights, rate)
    for pattern, own in rates.items():
        rate_of |= dict.fromkeys(_matching(pattern, list(weights), "learning_rates"), own)
    if config.optimizer != "muon":
        return [{"params": group, "lr": own} for own, group in _grouped(weights, rate_of).items()]
    inner = inner_matrices(network)
    kind_of = {name: (own, name in inner) for name, own in rate_of.items()}
    groups = _grouped(weights, kind_of)
    return [{"params": group, "lr": own, "orthogonal": orthogonal} for (own, orthogonal), group in groups.items()]


def inner_matrices(network: nn.Module) -> set[str]:
    """Names of the weights of linear layers and convolutions that are neither a network's first layer nor its last.

    Only for these is a step of equal singular values known to be of use (Jordan et al. 2024); embeddings are tables.
    """
    return {
        f"{name}.weight"
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | _ConvNd) and name.rpartition(".")[2] not in ENDS
    }


def make_optimizer(groups: list[dict], config: StageConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), fused, or with moments in 8 bits (Dettmers et al. 2022), or Muon."""
    if config.optimizer == "muon":
        return Muon(groups, config.betas, config.weight_decay, 0.95 if config.momentum is None else config.momentum)
    if config.optimizer == "adamw8bit":
        check_optimizer(config)
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, betas=config.betas, weight_decay=config.weight_decay)
    return torch.optim.AdamW(groups, betas=config.betas, weight_decay=config.weight_decay, fused=True)


def check_optimizer(config: StageConfig) -> None:
    """UserError where the optimiser asked for cannot run on this machine."""
    if config.optimizer == "adamw8bit":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise UserError("optimizer adamw8bit needs bitsandbytes: pip install bitsandbytes, or optimizer=adamw")
        if not torch.cuda.is_available():
            raise UserError("optimizer adamw8bit needs a GPU, and none is found: use optimizer=adamw")


def _grouped(weights: Mapping[str, nn.Parameter], key_of: Mapping[str, Key]) -> dict[Key, list[nn.Parameter]]:
    groups: dict[Key, list[nn.Parameter]] = {}
    for name, weight in weights.items():
        groups.setdefault(key_of[name], []).append(weight)
    return groups


def _matching(pattern: str, names: Sequence[str], option: str) -> Iterator[str]:
    """The names that a pattern such as `unet.*.attn2.*` matches, or that lie in the part or module it names."""
    inside = PARTS.get(pattern, pattern) + "."
    found = [name for name in names if fnmatchcase(name, pattern) or name.startswith(inside)]
    if not found:
        parts = sorted({name.split(".")[0] for name in names})
        raise UserError(f"{option}: {pattern!r} names no trainable weight; the parts are {', '.join(parts)}")
    yield from found
