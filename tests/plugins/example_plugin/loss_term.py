"""A loss term of the autoencoder: the distance of horizontal and vertical differences."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ldm.config.section import Section
from ldm.registry import LOSS_TERMS
from ldm.training.losses.term import Losses, LossTerm, Output


class EdgeLossConfig(Section):
    weight: float = 0.0


@LOSS_TERMS.register("edges")
class EdgeTerm(LossTerm):
    section = EdgeLossConfig

    def __call__(self, images: Tensor, output: Output, losses: Mapping[str, Tensor]) -> tuple[Tensor, Losses]:
        distance = sum((output.images.diff(dim=d) - images.diff(dim=d)).abs().mean() for d in (-1, -2))
        return self.config.weight * distance, {"edges": distance}
