"""Check that autoencoder, conditionings and denoiser fit together, in a configuration and in a loaded pipeline."""

from __future__ import annotations

from typing import Any

from ldm.conditioning.base import Conditioning, Sections
from ldm.registry import CONDITIONINGS, SPATIAL


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
        raise ValueError(f"{' and '.join(contexts)} all give the denoiser a context: set all but one to null")
    context = {option: width for each in inputs for option, width in each.context.items()}
    channels = {option: count for each in inputs for option, count in each.channels.items()}
    latent = autoencoder.latent_channels
    needed = latent + sum(channels.values())
    if denoiser.in_channels != needed:
        options = " + ".join(f"{option} ({count})" for option, count in channels.items())
        rest = f" + {options}" if options else ""
        raise ValueError(
            f"{name}.in_channels is {denoiser.in_channels}, but autoencoder.latent_channels ({latent}){rest} is "
            f"{needed}: set one of them"
        )
    outputs = latent * (2 if sections["diffusion"].learned_variance else 1)
    if denoiser.out_channels != outputs:
        twice = ", twice that with diffusion.learned_variance" if outputs != latent else ""
        raise ValueError(
            f"{name}.out_channels is {denoiser.out_channels}, but autoencoder.latent_channels is {latent}{twice}: "
            "set one of them"
        )
    _check_context(denoiser, context, name)
    if getattr(denoiser, "class_embed_type", None) is not None:
        raise ValueError(f"{name}.class_embed_type is {denoiser.class_embed_type}, which no conditioning provides")


def _check_context(denoiser: Any, context: dict[str, int], name: str) -> None:
    if (sum(context.values()) or None) != denoiser.context_width:
        option = "cross_attention_dim" if hasattr(denoiser, "cross_attention_dim") else "context_width"
        found = " + ".join(f"{option} ({width})" for option, width in context.items()) or "no text, classes or image"
        raise ValueError(
            f"{name}.{option} is {denoiser.context_width}, but the context has {found}: they must be equal"
        )
