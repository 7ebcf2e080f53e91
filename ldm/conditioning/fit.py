"""Check that autoencoder, conditionings and denoiser fit together, in a configuration and in a loaded pipeline."""

from __future__ import annotations

from typing import Any

from ldm.conditioning.base import Conditioning, Sections
from ldm.registry import CONDITIONINGS, SPATIAL

PIXELS = 3  # channels of images


def all_conditionings() -> list[type[Conditioning]]:
    """Return all registered conditionings."""
    return [*CONDITIONINGS.values(), *SPATIAL.values()]


def used_conditionings(sections: Sections) -> list[type[Conditioning]]:
    """Return the conditionings of a configuration, or of a pipeline described by the same sections.

    A model without any is unconditional.
    """
    used = [each for each in all_conditionings() if each.is_used(sections)]
    return used or [CONDITIONINGS["unconditional"]]


def check_fit(sections: Sections, name: str) -> None:
    """Check the sizes of the denoiser, whose section is `name`, against what it is given.

    Raises:
        ValueError: names both options and their values.
    """
    denoiser, autoencoder = sections["denoiser"], sections["autoencoder"]
    found = {each.name: each.denoiser_inputs(sections) for each in used_conditionings(sections)}
    inputs = list(found.values())
    contexts = [name for name, each in found.items() if each.context]
    if len(contexts) > 1:
        raise ValueError(f"{' and '.join(contexts)} each give the denoiser a context: set one of them to null")
    if contexts and denoiser.num_classes is not None:
        raise ValueError(f"{contexts[0]} and the table of classes in {name} are both set: remove one of them")
    context = {option: width for each in inputs for option, width in each.context.items()}
    channels = {option: count for each in inputs for option, count in each.channels.items()}
    latent = autoencoder.latent_channels
    needed = latent + sum(channels.values())
    if denoiser.in_channels != needed:
        rest = "".join(f" + {option} ({count})" for option, count in channels.items())
        options = "autoencoder.latent_channels" + (f" ({latent}){rest}" if rest else "")
        raise ValueError(f"{name}.in_channels is {denoiser.in_channels}, but {options} is {needed}: they must be equal")
    outputs = latent * (2 if sections["diffusion"].learned_variance else 1)
    if denoiser.out_channels != outputs:
        rule = f"with diffusion.learned_variance it must be {outputs}" if outputs != latent else "they must be equal"
        raise ValueError(
            f"{name}.out_channels is {denoiser.out_channels}, but autoencoder.latent_channels is {latent}: {rule}"
        )
    if autoencoder.is_pixel_space and latent != PIXELS:
        raise ValueError(f"the pixels of images have {latent} channels, but only images with {PIXELS} are supported")
    _check_context(denoiser, context, name)
    pooled = next((each.pooled for each in inputs if each.pooled is not None), None)
    if denoiser.pooled_width is not None and (pooled is None or denoiser.added_numbers(pooled) is None):
        raise ValueError(
            f"{name} expects pooled text of width {denoiser.pooled_width}, but projection_dim of the last text encoder "
            f"is {pooled}: they must be equal"
        )
    if getattr(denoiser, "class_embed_type", None) is not None:
        raise ValueError(f"{name}.class_embed_type is {denoiser.class_embed_type}, which no conditioning provides")


def _check_context(denoiser: Any, context: dict[str, int], name: str) -> None:
    if (sum(context.values()) or None) != denoiser.context_width:
        option = "cross_attention_dim" if hasattr(denoiser, "cross_attention_dim") else "context_width"
        found = " + ".join(f"{option} ({width})" for option, width in context.items()) or "no text, classes or image"
        raise ValueError(
            f"{name}.{option} is {denoiser.context_width}, but the context has {found}: they must be equal"
        )
