"""Equivariance to scaling: latents averaged over squares must decode to the image averaged over squares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ldm.config.section import Section
from ldm.models.autoencoder.distribution import LatentDistribution
from ldm.training.losses.reconstruction import value_distance
from ldm.training.losses.term import Losses, LossTerm, Output

if TYPE_CHECKING:
    from ldm.config.root import Config
    from ldm.training.stages.autoencoder import AutoencoderStage, Reconstruction


class EquivarianceLossConfig(Section):
    """Distance of images decoded from averaged latents to averaged images (Skorokhodov et al. 2025, section 4).

    It removes from latents the high frequencies that images do not have, which a denoiser would have to learn.
    """

    weight: float = Field(0.0, ge=0)  # relative to the reconstruction; 0.25 in the paper
    factor: int = Field(2, ge=2)  # side of the squares, latent positions


class EquivarianceTerm(LossTerm):
    """The distance, measured as the reconstruction is."""

    section = EquivarianceLossConfig
    is_distance = True

    def __init__(self, config: EquivarianceLossConfig, stage: AutoencoderStage) -> None:
        super().__init__(config, stage)
        self.distance = stage.loss_config.reconstruction

    @classmethod
    def latent_multiple(cls, config: EquivarianceLossConfig) -> int:
        """Return the side of the squares."""
        return config.factor

    @classmethod
    def check(cls, name: str, config: Config) -> None:
        """Raise ValueError if the side of the latents is not a multiple of `factor`."""
        section, side = getattr(config.loss, name), config.data.size // config.autoencoder.downsampling_factor
        if section.weight and side % section.factor:
            raise ValueError(f"loss.{name}.factor {section.factor} does not divide the {side}x{side} latents")

    @staticmethod
    def forward(
        config: EquivarianceLossConfig, network: Reconstruction, posterior: LatentDistribution, latents: Tensor
    ) -> Tensor:
        """Decode averaged latents to images (B, 3, H / factor, W / factor)."""
        return network.autoencoder.decode(F.avg_pool2d(latents, config.factor))

    def __call__(self, images: Tensor, output: Output, losses: Mapping[str, Tensor]) -> tuple[Tensor, Losses]:
        """Return the weighted distance ()."""
        small = output.terms["equivariance"]
        distance = value_distance(small, F.adaptive_avg_pool2d(images, small.shape[-2:]), self.distance)
        return self.config.weight * distance, {"equivariance": distance}
