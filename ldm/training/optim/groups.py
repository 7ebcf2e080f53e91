"""Parameter groups: which weights are trained, and at which learning rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from ldm.config.training import StageConfig
from ldm.errors import UserError

PARTS = {"text": "text_encoder"}  # names in the configuration that differ from those of modules
# First and last layers of the networks, which Muon leaves to AdamW.
ENDS = {"conv_in", "patch_embedding", "channel_mapper", "class_embedding", "conv_out", "head", "to_logits"}


def freeze(network: nn.Module, patterns: Sequence[str]) -> None:
    """Exclude weights from training by the name of a part or a pattern of names.

    Raises:
        UserError: if a pattern matches nothing or no weight is left to train.
    """
    weights = dict(network.named_parameters())
    for pattern in patterns:
        for name in _matching(pattern, list(weights), "freeze"):
            weights[name].requires_grad_(False)
    if not any(weight.requires_grad for weight in network.parameters()):
        raise UserError("freeze matches all weights, so that none is trained: remove a pattern")


def parameter_groups(
    network: nn.Module, rate: float, rates: Mapping[str, float], config: StageConfig
) -> list[dict[str, Any]]:
    """Return the trainable weights in one group per learning rate.

    Args:
        network: The network.
        rate: The learning rate of weights that no pattern matches.
        rates: Pattern of names -> learning rate; the last pattern that matches a weight applies.
        config: With optimizer muon, inner matrices are in groups with `orthogonal` set.
    """
    weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    rate_of = dict.fromkeys(weights, rate)
    for pattern, value in rates.items():
        rate_of |= dict.fromkeys(_matching(pattern, list(weights), "learning_rates"), value)
    inner = inner_matrices(network) if config.optimizer == "muon" else None
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, weight in weights.items():
        groups.setdefault((rate_of[name], name in (inner or ())), []).append(weight)
    return [
        {"params": group, "lr": value} | ({} if inner is None else {"orthogonal": orthogonal})
        for (value, orthogonal), group in groups.items()
    ]


def inner_matrices(network: nn.Module) -> set[str]:
    """Return the names of weights of linear layers and convolutions, except a network's first and last layers.

    Steps of equal singular values are known to help only these (Jordan et al. 2024); embeddings are tables.
    """
    return {
        f"{name}.weight"
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | _ConvNd) and name.rpartition(".")[2] not in ENDS
    }


def _matching(pattern: str, names: Sequence[str], option: str) -> Iterator[str]:
    """Yield the names that match a pattern such as `unet.*.attn2.*` or are inside the part or module it names."""
    inside = PARTS.get(pattern, pattern) + "."
    found = [name for name in names if fnmatchcase(name, pattern) or name.startswith(inside)]
    if not found:
        parts = sorted({name.split(".")[0] for name in names})
        raise UserError(f"{option}: {pattern!r} matches no trainable weight; the parts are {', '.join(parts)}")
    yield from found
