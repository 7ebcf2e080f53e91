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

# Parts of a single file of a whole model, by where the names of their parameters begin.
PREFIXES = {
    "model.diffusion_model.": "unet",
    "first_stage_model.": "autoencoder",
    "cond_stage_model.": "text",
    "conditioner.embedders.0.": "text",
    "conditioner.embedders.1.": "text_2",
    "model_ema.": "ema",
}
# Networks alone in a file, of the original naming and of diffusers' and transformers', by how a name begins.
ALONE = {
    "autoencoder": ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.", "loss."),
    "text": ("text_model.", "embeddings.", "transformer."),
    "unet": (
        *("input_blocks.", "middle_block.", "output_blocks.", "out.", "time_embed.", "label_emb."),
        *("down_blocks.", "mid_block.", "up_blocks.", "conv_", "time_embedding.", "add_embedding.", "class_embedding."),
    ),
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
    for prefix, part in PREFIXES.items():
        if name.startswith(prefix):
            return part, name.removeprefix(prefix)
    return next((part for part, starts in ALONE.items() if name.startswith(starts)), "other"), name


def _sum(counts: Mapping[str, int], starts: tuple[str, ...]) -> int:
    return sum(count for name, count in counts.items() if name.startswith(starts))
