"""What all terms of the autoencoder's loss have in common, and their total.

Sums over an image's values are divided by their number, so that a term does not depend on the resolution and published
ratios between terms, such as 1e-6 for KL, remain valid. Half precision is converted to float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor, nn

from ldm.config.section import Section
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.autoencoder.distribution import LatentDistribution

if TYPE_CHECKING:
    from ldm.config.root import Config
    from ldm.data.loader import Batch
    from ldm.training.stages.autoencoder import AutoencoderStage, Reconstruction

Losses = dict[str, Tensor]


class Output(NamedTuple):
    """What a forward pass of the trained network returns."""

    images: Tensor  # reconstructions, (B, 3, H, W)
    terms: dict[str, Any]  # results of `LossTerm.forward`, by the name of the term
    observed: dict[str, Tensor]  # for diagnostics, without gradients


class MicroBatch(NamedTuple):
    """A micro-batch of a step whose backward pass is done."""

    slots: Sequence[int]  # places in the global batch
    images: Tensor  # (B, 3, H, W)
    output: Output  # without gradients


class LossTerm:
    """A term of the loss; a subclass overrides what differs from a weighted function of images and reconstructions.

    `section` is its configuration, with a default for every option. A term is registered in `ldm.registry.LOSS_TERMS`
    under the name of its section in `loss`.
    """

    section: ClassVar[type[Section]]
    is_distance: ClassVar[bool] = False  # part of the distance whose likelihood is maximized; see `total_loss`
    shardable: ClassVar[bool] = True  # trains with weights that are sharded among processes
    in_validation: ClassVar[bool] = True  # part of the validation loss
    start_step: int = 0  # first step with this term

    def __init__(self, config: Any, stage: AutoencoderStage) -> None:
        """Build what the term needs for training; the stage's network is already prepared."""
        self.config = config

    @classmethod
    def fits(cls, autoencoder: AutoencoderConfig) -> bool:
        """Return whether the term is defined for an autoencoder; otherwise its section must keep the defaults."""
        return True

    @classmethod
    def is_enabled(cls, config: Any) -> bool:
        """Return whether the term is used."""
        return bool(config.weight)

    @classmethod
    def latent_multiple(cls, config: Any) -> int:
        """Return the number by which the sides of latents must be divisible."""
        return 1

    @classmethod
    def check(cls, name: str, config: Config) -> None:
        """Raise ValueError if the options of the section `name` do not fit the configuration."""
        section, autoencoder = getattr(config.loss, name), config.autoencoder
        if not cls.fits(autoencoder) and section != cls.section():
            raise ValueError(f"loss.{name} does not apply to an autoencoder of kind {autoencoder.kind}: remove it")

    @classmethod
    def check_files(cls, config: Any) -> None:
        """Raise UserError if files that the term needs are missing."""

    @classmethod
    def networks(cls, config: Any, autoencoder: AutoencoderConfig) -> dict[str, nn.Module]:
        """Return the networks that are trained together with the autoencoder, to count their cost."""
        return {}

    @classmethod
    def passes(cls, config: Any) -> Fraction:
        """Return how often each of `networks` runs forward and backward for an image and step."""
        return Fraction(0)

    @staticmethod
    def extend(config: Any, network: Reconstruction) -> None:
        """Add parameters to the trained network."""

    @staticmethod
    def forward(config: Any, network: Reconstruction, posterior: LatentDistribution, latents: Tensor) -> Any:
        """Compute tensors for `__call__` inside of the trained network's forward pass, where its weights are whole."""
        return None

    def __call__(self, images: Tensor, output: Output, losses: Mapping[str, Tensor]) -> tuple[Tensor, Losses]:
        """Return the weighted term () and the scalars to log; `losses` are those of earlier terms, with `nll`."""
        raise NotImplementedError

    def likelihood(self, distance: Tensor, output: Output) -> Tensor:
        """Turn the weighted sum of all distances () into a negative log-likelihood."""
        return distance

    def observe(self, images: Tensor, output: Output) -> dict[str, Tensor]:
        """Return what diagnostics need in addition to the losses of a micro-batch, without gradients."""
        return {}

    def begin_step(self, batches: Sequence[Batch], step: int) -> None:
        """Do what precedes a step."""

    def end_step(self, seen: Sequence[MicroBatch], step: int) -> tuple[Losses, dict[str, Tensor]]:
        """Do what follows the autoencoder's step; return the scalars to log, and what diagnostics need."""
        return {}, {}

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed run needs in addition to networks and optimizers."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load a `state`."""


def total_loss(terms: Sequence[LossTerm], images: Tensor, output: Output) -> Losses:
    """Return the scalars to log, with `nll` and the `total` that is minimized.

    `nll` is the negative log-likelihood of the image for the sum of all distances; `total` adds the other terms to it.
    """
    losses: Losses = {}
    distance: Tensor | None = None
    for term in terms:
        if term.is_distance:
            weighted, found = term(images, output, losses)
            losses |= found
            distance = weighted if distance is None else distance + weighted
    assert distance is not None
    for term in terms:
        distance = term.likelihood(distance, output)
    losses["nll"] = total = distance
    for term in terms:
        if not term.is_distance:
            weighted, found = term(images, output, losses)
            losses |= found
            total = total + weighted
    return losses | {"total": total}
