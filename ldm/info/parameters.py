"""Parameters by part, whether they are a network's or those that a file's header tells of."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

Counts = dict[str, int]

# Parts of an autoencoder, by how the names of their parameters start; what has no entry counts in the total alone.
AUTOENCODER = {
    "encoder": ("encoder.", "quant_conv."),
    "decoder": ("decoder.", "post_quant_conv."),
    "codebook": ("quantize.",),
    "loss": ("loss.",),  # the discriminator in training's own files
}

# Parts of a single file, by how the names of their parameters start: CompVis', Stable Diffusion's and bare networks.
SINGLE_FILE = {
    "unet": ("model.diffusion_model.", "down_blocks.", "mid_block.", "up_blocks.", "conv_in.", "time_embedding."),
    "autoencoder": ("first_stage_model.", "encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize."),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0.", "text_model.", "embeddings."),
    "text_encoder_2": ("conditioner.embedders.1.",),
    "ema": ("model_ema.",),
}


def of_network(network: nn.Module) -> Counts:
    """Number of values of each parameter."""
    return {name: weight.numel() for name, weight in network.named_parameters()}


def totals(part: str, counts: Mapping[str, int]) -> Counts:
    """The parameters of a part: of its own parts, where it is an autoencoder, and of all."""
    own = {name: _sum(counts, starts) for name, starts in AUTOENCODER.items()} if part == "autoencoder" else {}
    return {name: count for name, count in own.items() if count} | {"total": sum(counts.values())}


def by_part(counts: Mapping[str, int]) -> dict[str, Counts]:
    """The parameters of a single file by part; their names lose what stands for the part."""
    parts: dict[str, Counts] = {}
    for name, count in counts.items():
        part, rest = _part_of(name)
        parts.setdefault(part, {})[rest] = count
    return parts


def _part_of(name: str) -> tuple[str, str]:
    for part, starts in SINGLE_FILE.items():
        for start in starts:
            if name.startswith(start):
                is_prefix = start.startswith(("model.", "first_stage", "cond_stage", "conditioner.", "model_ema"))
                return part, name.removeprefix(start) if is_prefix else name
    return "other", name


def _sum(counts: Mapping[str, int], starts: tuple[str, ...]) -> int:
    return sum(count for name, count in counts.items() if name.startswith(starts))
