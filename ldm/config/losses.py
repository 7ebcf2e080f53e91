"""What the autoencoder minimises."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ldm.config.section import Section


class ReconstructionLossConfig(Section):
    """Distance between a picture and its reconstruction, per value."""

    kind: Literal["l1", "l2"] = "l1"
    learned_log_variance: bool = False  # divide by a learned variance, add its logarithm
    initial_log_variance: float = 0.0


class KLLossConfig(Section):
    """Kullback-Leibler divergence of the posterior from a unit normal, summed over a latent."""

    weight: float = 1e-6


class PerceptualLossConfig(Section):
    """LPIPS (Zhang et al. 2018) through the `lpips` package; its backbone's weights must be on this machine."""

    weight: float = 1.0
    net: Literal["vgg", "alex", "squeeze"] = "vgg"


class AdversarialLossConfig(Section):
    """Patch discriminator (Isola et al. 2017) and how it joins the loss (Esser et al. 2021)."""

    weight: float = 0.5
    kind: Literal["hinge", "vanilla"] = "hinge"
    start_step: int = 50_000
    adaptive: bool = True  # scale by the ratio of gradient norms at the decoder's last layer
    discriminator_layers: int = 3
    discriminator_channels: int = 64
    discriminator_norm: Literal["batch", "group", "none"] = "batch"
    learning_rate: float | None = None  # None: that of the autoencoder


class EquivarianceLossConfig(Section):
    """Latents averaged over squares must decode to the picture averaged alike (Skorokhodov et al. 2025, section 4).

    It takes from latents the high frequencies that pictures do not have, which a U-Net would have to learn.
    """

    weight: float = 0.0  # relative to the reconstruction; the paper has 0.25
    factor: int = Field(2, ge=2)  # side of the squares, in latent positions


class LossConfig(Section):
    """What the autoencoder minimises."""

    reconstruction: ReconstructionLossConfig = ReconstructionLossConfig()
    kl: KLLossConfig = KLLossConfig()
    perceptual: PerceptualLossConfig = PerceptualLossConfig()
    adversarial: AdversarialLossConfig = AdversarialLossConfig()
    equivariance: EquivarianceLossConfig = EquivarianceLossConfig()
