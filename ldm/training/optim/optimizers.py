"""Optimizers by name, or by the dotted name of a class such as `torch.optim.Adafactor`."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch

from ldm.config.training import StageConfig
from ldm.errors import UserError
from ldm.training.optim.importing import import_name
from ldm.training.optim.muon import Muon

Groups = list[dict[str, Any]]


def adamw(groups: Groups, config: StageConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), fused."""
    options = {"betas": config.betas, "weight_decay": config.weight_decay, "fused": True}
    return torch.optim.AdamW(groups, **options | config.optimizer_options)


def adamw8bit(groups: Groups, config: StageConfig) -> torch.optim.Optimizer:
    """AdamW with moments in 8 bits (Dettmers et al. 2022)."""
    check_optimizer(config)
    from bitsandbytes.optim import AdamW8bit

    options: dict[str, Any] = {"betas": config.betas, "weight_decay": config.weight_decay}
    return AdamW8bit(groups, **options | config.optimizer_options)


def muon(groups: Groups, config: StageConfig) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024) for inner matrices, AdamW for other weights."""
    momentum = 0.95 if config.momentum is None else config.momentum
    options: dict[str, Any] = {"betas": config.betas, "weight_decay": config.weight_decay, "momentum": momentum}
    return Muon(groups, **options | config.optimizer_options)


OPTIMIZERS: dict[str, Callable[[Groups, StageConfig], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "adamw8bit": adamw8bit,
    "muon": muon,
}


def make_optimizer(groups: Groups, config: StageConfig) -> torch.optim.Optimizer:
    """Build the configured optimizer for parameter groups that have their learning rates as `lr`.

    A class by its dotted name gets `betas` and `weight_decay` if its constructor has them, and `optimizer_options`.

    Raises:
        UserError: if the class cannot be imported or does not take these options.
    """
    if config.optimizer in OPTIMIZERS:
        build = OPTIMIZERS[config.optimizer]
        return _explained(config, lambda: build(groups, config))
    kind = _import_optimizer(config.optimizer)
    options = {"betas": config.betas, "weight_decay": config.weight_decay}
    taken = {name: value for name, value in options.items() if name in inspect.signature(kind).parameters}
    return _explained(config, lambda: kind(groups, **taken | config.optimizer_options))


def check_optimizer(config: StageConfig) -> None:
    """Raise UserError if the configured optimizer cannot run on this machine."""
    if config.optimizer == "adamw8bit":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise UserError("optimizer adamw8bit needs bitsandbytes: pip install bitsandbytes, or use adamw")
        if not torch.cuda.is_available():
            raise UserError("optimizer adamw8bit needs a GPU, and this machine has none: use adamw")
    elif config.optimizer not in OPTIMIZERS:
        _import_optimizer(config.optimizer)


def _import_optimizer(name: str) -> type[torch.optim.Optimizer]:
    kind = import_name(name, "optimizer", OPTIMIZERS)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise UserError(f"optimizer {name!r} is not a subclass of torch.optim.Optimizer")
    return kind


def _explained(config: StageConfig, build: Callable[[], torch.optim.Optimizer]) -> torch.optim.Optimizer:
    try:
        return build()
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer {config.optimizer} with {config.optimizer_options}: {error}") from error
