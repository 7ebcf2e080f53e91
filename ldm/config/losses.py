"""Options of the autoencoder's loss, a section for each term in `ldm.registry.LOSS_TERMS`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ldm.config.section import Section, component_fields, extended
from ldm.registry import LOSS_TERMS

if TYPE_CHECKING:
    from fractions import Fraction

    from torch import nn

    from ldm.config.root import Config
    from ldm.models.autoencoder.config import AutoencoderConfig
    from ldm.training.losses.term import LossTerm


class LossConfig(Section):
    """The loss that the autoencoder minimizes."""

    if TYPE_CHECKING:  # the sections of the terms

        def __getattr__(self, name: str) -> Any: ...


if not TYPE_CHECKING:
    LossConfig = extended(LossConfig, component_fields(LOSS_TERMS))


def active_terms(loss: LossConfig, autoencoder: AutoencoderConfig) -> dict[str, type[LossTerm]]:
    """Return the classes of the terms that a configuration uses, by name."""
    fitting = {name: term for name, term in LOSS_TERMS.items() if term.fits(autoencoder)}
    return {name: term for name, term in fitting.items() if term.is_enabled(getattr(loss, name))}


def check_losses(config: Config) -> None:
    """Raise ValueError if the options of a term do not fit the rest of the configuration."""
    for name, term in LOSS_TERMS.items():
        term.check(name, config)


def latent_multiples(config: Config) -> list[int]:
    """Return the numbers by which the sides of latents must be divisible."""
    terms = active_terms(config.loss, config.autoencoder)
    return [term.latent_multiple(getattr(config.loss, name)) for name, term in terms.items()]


def loss_networks(loss: LossConfig, autoencoder: AutoencoderConfig) -> dict[str, tuple[nn.Module, Fraction]]:
    """Return the networks that are trained together with the autoencoder, and their passes for an image and step."""
    found: dict[str, tuple[nn.Module, Fraction]] = {}
    for name, term in active_terms(loss, autoencoder).items():
        section = getattr(loss, name)
        found |= {key: (network, term.passes(section)) for key, network in term.networks(section, autoencoder).items()}
    return found
