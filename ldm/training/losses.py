"""What the autoencoder and its discriminator minimise (Rombach et al. 2022, section 3.1 and appendix G).

Sums over an image's values are divided by their number, so that a term's size does not depend on the resolution;
the published ratios between the terms, such as 1e-6 for KL, keep their meaning. Half precision is lifted to float32;
what is given in float64 is computed in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.config.losses import LossConfig
from ldm.models.efficientnet import NAME as EFFICIENTNET
from ldm.models.efficientnet import EfficientNetDistance, load_efficientnet
from ldm.models.perceptual import PerceptualDistance, backbone_state
from ldm.models.precision import at_least_float32
from ldm.training.stages.codebook import Quantised

ADAPTIVE_LIMIT = 1e4  # of the adaptive weight


class AutoencoderLoss:
    """Reconstruction and perceptual terms, and those of the bottleneck."""

    def __init__(self, config: LossConfig, device: torch.device) -> None:
        self.config = config
        self.perceptual = _perceptual(config.perceptual.net).to(device) if config.perceptual.weight else None

    def terms(
        self,
        images: Tensor,
        reconstructions: Tensor,
        bottleneck: Tensor | Quantised,
        log_variance: Tensor,
        small: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Scalars for images and reconstructions (B, 3, H, W); `nll` and `total` are minimised.

        `bottleneck` is the KL divergence (B,) in nats, or what quantisation did.

        nll = distance / exp(log_variance) + log_variance, the negative log-likelihood of a Laplace (l1) or normal (l2)
        distribution up to a constant; the distance has the perceptual one added, and that of `small`, the
        reconstructions from averaged latents, to the images averaged alike.
        """
        terms = {"reconstruction": self.distance(reconstructions, images)}
        distance_mean = terms["reconstruction"]
        if small is not None:
            terms["equivariance"] = self.distance(small, F.adaptive_avg_pool2d(images, small.shape[-2:]))
            distance_mean = distance_mean + self.config.equivariance.weight * terms["equivariance"]
        if self.perceptual is not None:
            made = at_least_float32(reconstructions)
            terms["perceptual"] = self.perceptual(made, images.to(made.dtype)).mean()
            distance_mean = distance_mean + self.config.perceptual.weight * terms["perceptual"]
        terms["nll"] = distance_mean * torch.exp(-log_variance) + log_variance
        if isinstance(bottleneck, Quantised):
            weighted = self._codebook(bottleneck, terms)
        else:
            terms["kl"] = bottleneck.mean() / images[0].numel()
            weighted = self.config.kl.weight * terms["kl"]
        terms["total"] = terms["nll"] + weighted
        return terms

    def _codebook(self, quantised: Quantised, terms: dict[str, Tensor]) -> Tensor:
        """|z - e|^2 per value, once to move the encoder and once the codebook, put into `terms`; their weighted sum."""
        config, (z, nearest, _) = self.config.codebook, quantised
        terms["commitment"] = F.mse_loss(z, nearest.detach())
        weighted = config.commitment_weight * terms["commitment"]
        if config.decay is None:
            terms["codebook"] = F.mse_loss(nearest, z.detach())
            weighted = weighted + config.weight * terms["codebook"]
        return weighted

    def distance(self, made: Tensor, wanted: Tensor) -> Tensor:
        """Mean absolute or squared difference () of images (B, 3, H, W)."""
        difference = at_least_float32(made) - wanted
        return (difference.abs() if self.config.reconstruction.kind == "l1" else difference.square()).mean()


def check_perceptual(net: str) -> None:
    """Raise UserError where the weights of a perceptual distance cannot be had."""
    load_efficientnet() if net == EFFICIENTNET else backbone_state(net)


def _perceptual(net: str) -> PerceptualDistance | EfficientNetDistance:
    return EfficientNetDistance() if net == EFFICIENTNET else PerceptualDistance(net)


def generator_loss(logits_fake: Tensor, kind: str) -> Tensor:
    """-E[D(G(x))] for hinge (Lim and Ye 2017, equation 8) and, as in VQGAN, vanilla; else -E[log sigmoid(D(G(x)))].

    The latter is the non-saturating loss of Goodfellow et al. (2014, section 3).
    """
    if kind == "non_saturating":
        return F.softplus(-at_least_float32(logits_fake)).mean()
    return -at_least_float32(logits_fake).mean()


def discriminator_loss(logits_real: Tensor, logits_fake: Tensor, kind: str) -> Tensor:
    """Hinge loss (Lim and Ye 2017, equation 7) or that of Goodfellow et al. (2014, equation 1).

    Hinge and vanilla are halved as in VQGAN; non_saturating is not, so that the published weights of R1 fit it.
    """
    real, fake = at_least_float32(logits_real), at_least_float32(logits_fake)
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    both = F.softplus(-real).mean() + F.softplus(fake).mean()
    return 0.5 * both if kind == "vanilla" else both


def r1_loss(penalties: Tensor, weight: float) -> Tensor:
    """gamma / 2 E[|grad D(x)|^2] at real images, from squared norms (B,) (Mescheder et al. 2018, equation 9)."""
    return 0.5 * weight * penalties.mean()


def adaptive_weight(nll_gradient: Tensor, generator_gradient: Tensor) -> Tensor:
    """|grad nll| / |grad generator loss| at the decoder's last layer (Esser et al. 2021, equation 7), up to a limit.

    Of gradients that overflowed to infinity or NaN, finite all the same: 0 where the ratio means nothing.
    """
    ratio = at_least_float32(nll_gradient).norm() / (at_least_float32(generator_gradient).norm() + 1e-4)
    return ratio.nan_to_num(nan=0.0).clamp(0.0, ADAPTIVE_LIMIT).detach()
