"""Distance between images and reconstructions, per value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ldm.config.section import Section
from ldm.models.autoencoder.distribution import LatentDistribution
from ldm.models.precision import at_least_float32
from ldm.training.losses.term import Losses, LossTerm, Output

if TYPE_CHECKING:
    from ldm.training.stages.autoencoder import AutoencoderStage, Reconstruction


class ReconstructionLossConfig(Section):
    """Distance between an image and its reconstruction, per value."""

    kind: Literal["l1", "l2"] = "l1"
    learned_log_variance: bool = False  # divide all distances by a learned variance and add its logarithm
    initial_log_variance: float = 0.0


class ReconstructionTerm(LossTerm):
    """The mean absolute or squared difference, and the likelihood of all distances.

    nll = distance / exp(log_variance) + log_variance, the negative log-likelihood of a Laplace (l1) or normal (l2)
    distribution up to a constant.
    """

    section = ReconstructionLossConfig
    is_distance = True

    def __init__(self, config: ReconstructionLossConfig, stage: AutoencoderStage) -> None:
        super().__init__(config, stage)
        self.colour = stage.shown.mean((0, 2, 3), keepdim=True).to(stage.accelerator.device)  # the images' mean

    @classmethod
    def is_enabled(cls, config: Any) -> bool:
        """Return True, because the other distances are added to this one."""
        return True

    @staticmethod
    def extend(config: ReconstructionLossConfig, network: Reconstruction) -> None:
        """Add the logarithm of the variance."""
        network.log_variance = nn.Parameter(
            torch.tensor(config.initial_log_variance), requires_grad=config.learned_log_variance
        )

    @staticmethod
    def forward(config: Any, network: Reconstruction, posterior: LatentDistribution, latents: Tensor) -> Tensor:
        """Return the logarithm of the variance ()."""
        return network.log_variance * 1.0

    def __call__(self, images: Tensor, output: Output, losses: Mapping[str, Tensor]) -> tuple[Tensor, Losses]:
        """Return the distance ()."""
        distance = value_distance(output.images, images, self.config)
        return distance, {"reconstruction": distance}

    def likelihood(self, distance: Tensor, output: Output) -> Tensor:
        """Return the negative log-likelihood ()."""
        log_variance = output.terms["reconstruction"]
        return distance * torch.exp(-log_variance) + log_variance

    def observe(self, images: Tensor, output: Output) -> dict[str, Tensor]:
        """Return the distance of images to the mean colour, which a useful reconstruction must undercut."""
        return {"one_colour": value_distance(self.colour, images, self.config)}


def value_distance(reconstructions: Tensor, images: Tensor, config: ReconstructionLossConfig) -> Tensor:
    """Return the mean absolute or squared difference () of images (B, 3, H, W)."""
    difference = at_least_float32(reconstructions) - images
    return (difference.abs() if config.kind == "l1" else difference.square()).mean()
