"""Parameter counts by part, from the names of a network's or a file's tensors."""

from __future__ import annotations

from collections.abc import Mapping

Counts = dict[str, int]

# Pipeline of an autoencoder, by prefixes of parameter names; other parameters count in the total only.
AUTOENCODER = {
    "encoder": ("encoder.", "quant_conv."),
    "decoder": ("decoder.", "post_quant_conv."),
    "codebook": ("quantize.",),
    "loss": ("loss.",),  # the discriminator in CompVis' training checkpoints
}
# Pipeline of a single file of a whole model, by prefixes.
PREFIXES = {
    "model.diffusion_model.": "unet",
    "first_stage_model.": "autoencoder",
    "cond_stage_model.": "text",
    "conditioner.embedders.0.": "text",
    "conditioner.embedders.1.": "text_2",
    "model_ema.": "ema",
}
# Single networks in a file, with CompVis', diffusers' and transformers' names.
ALONE = {
    "autoencoder": ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.", "loss."),
    "text": ("text_model.", "embeddings.", "transformer."),
    "unet": (
        *("input_blocks.", "middle_block.", "output_blocks.", "out.", "time_embed.", "label_emb."),
        *("down_blocks.", "mid_block.", "up_blocks.", "conv_", "time_embedding.", "add_embedding.", "class_embedding."),
    ),
}


def totals(part: str, counts: Mapping[str, int]) -> Counts:
    """Sum the parameters of a part: `total`, and for an autoencoder also encoder, decoder, codebook and loss."""
    prefixes = AUTOENCODER if part == "autoencoder" else {}
    own = {name: sum(n for key, n in counts.items() if key.startswith(starts)) for name, starts in prefixes.items()}
    return {name: count for name, count in own.items() if count} | {"total": sum(counts.values())}


def by_part(counts: Mapping[str, int]) -> dict[str, Counts]:
    """Group the parameters of a single file by part, and remove the pipeline' prefixes from their names."""
    pipeline: dict[str, Counts] = {}
    for name, count in counts.items():
        part, rest = _part_of(name)
        pipeline.setdefault(part, {})[rest] = count
    return pipeline


def _part_of(name: str) -> tuple[str, str]:
    for prefix, part in PREFIXES.items():
        if name.startswith(prefix):
            return part, name.removeprefix(prefix)
    return next((part for part, starts in ALONE.items() if name.startswith(starts)), "other"), name
