"""Another autoencoder for a pipeline, with the same latents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoint.find import find_autoencoder
from ldm.checkpoint.pipeline import Pipeline
from ldm.errors import UserError
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.config import AutoencoderConfig

LARGEST_RATIO = 1.25  # of the scaling factors of equal latents: fine-tuned decoders keep them
LARGEST_SHIFT = 0.25  # of their means, in standard deviations


def with_autoencoder(pipeline: Pipeline, model: str | Path, dtype: torch.dtype = torch.float32) -> Pipeline:
    """Replace the autoencoder of a pipeline by that of `model`; its downsampling factor decides the size of images.

    Args:
        model: a run, a pipeline, a Hub id, or the folder of an autoencoder.

    Raises:
        UserError: if there is none, or its latents have other channels or another scaling.
    """
    found = Autoencoder.from_pretrained(find_autoencoder(model), dtype)
    own, other = pipeline.autoencoder.config, found.config
    if own.is_pixel_space:
        raise UserError(f"--vae {model}: this model works on pixels and has no autoencoder, leave it out")
    if own.latent_channels != other.latent_channels:
        raise UserError(
            f"--vae {model}: its latents have {other.latent_channels} channels, but this model's have "
            f"{own.latent_channels}: pass an autoencoder with the same kind of latents"
        )
    (scale, shift), (other_scale, other_shift) = map(_statistics, (own, other))
    ratio = (other_scale / scale).log().abs().max().exp().item()
    moved = ((other_shift - shift) * scale).abs().max().item()
    if ratio > LARGEST_RATIO or moved > LARGEST_SHIFT:
        raise UserError(
            f"--vae {model}: its scaling_factor is {_shown(other_scale)} and shift_factor {_shown(other_shift)}, but "
            f"this model's are {_shown(scale)} and {_shown(shift)}: pass an autoencoder with the same kind of latents"
        )
    changed = replace(pipeline, autoencoder=found)
    changed.check(Path(model))
    return changed


def _statistics(config: AutoencoderConfig) -> tuple[Tensor, Tensor]:
    """Return scaling and shift of each channel, (C,)."""
    values = (1.0 if config.scaling_factor is None else config.scaling_factor, config.shift_factor or 0.0)
    scale, shift = (torch.tensor(value, dtype=torch.float64).expand(config.latent_channels) for value in values)
    return scale, shift


def _shown(values: Tensor) -> str:
    return " ".join(f"{value:.5g}" for value in values.unique().tolist())
