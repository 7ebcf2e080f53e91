"""A patch discriminator, and the autoencoder's loss against it (Isola et al. 2017; Esser et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import reduce
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.discriminator import DiscriminatorConfig, PatchDiscriminator
from ldm.models.precision import at_least_float32
from ldm.training.diagnostics.observations import mean_of
from ldm.training.losses.term import Losses, LossTerm, MicroBatch, Output

if TYPE_CHECKING:
    from ldm.training.stages.autoencoder import AutoencoderStage

ADAPTIVE_LIMIT = 1e4  # of the adaptive weight in the published code


class AdversarialLossConfig(DiscriminatorConfig):
    """Options of the patch discriminator (Isola et al. 2017) and the adversarial loss (Esser et al. 2021)."""

    weight: float = Field(0.5, ge=0)
    # Hinge (Lim and Ye 2017) and vanilla as in VQGAN, or non-saturating as in Goodfellow et al. (2014, section 3).
    kind: Literal["hinge", "vanilla", "non_saturating"] = "hinge"
    start_step: int = Field(50_000, ge=0)
    adaptive: bool = True  # scale by the ratio of gradient norms at the decoder's last layer
    learning_rate: float | None = Field(None, ge=0)  # None: as the autoencoder
    r1_weight: float = Field(0.0, ge=0.0)  # gamma of the gradient penalty at real images (Mescheder et al. 2018)
    r1_every: int = Field(16, ge=1)  # steps; the penalty is multiplied by it (Karras et al. 2020, section 3.1)

    @model_validator(mode="after")
    def _check_penalty(self) -> AdversarialLossConfig:
        if self.r1_weight and self.discriminator_norm == "batch":
            raise ValueError(
                "r1_weight penalizes the gradient of each image's logits, but batch normalization mixes images: set "
                "discriminator_norm to group, spectral or none"
            )
        return self


class AdversarialTerm(LossTerm):
    """The discriminator's judgement of reconstructions; the discriminator is trained on the same images."""

    section = AdversarialLossConfig
    shardable = False
    in_validation = False

    def __init__(self, config: AdversarialLossConfig, stage: AutoencoderStage) -> None:
        super().__init__(config, stage)
        self.start_step = config.start_step
        self.accelerator, self.clip = stage.accelerator, stage.config.gradient_clip
        self.last_layer, self.autoencoder = stage.autoencoder.last_layer, stage.autoencoder.config
        network = stage.place(PatchDiscriminator(config, self.autoencoder.in_channels))
        rate = config.learning_rate or stage.config.learning_rate
        self.discriminator = stage.prepare("discriminator", network, rate, {})

    @classmethod
    def networks(cls, config: AdversarialLossConfig, autoencoder: AutoencoderConfig) -> dict[str, nn.Module]:
        """Return the discriminator."""
        return {"discriminator": PatchDiscriminator(config, autoencoder.in_channels)}

    @classmethod
    def passes(cls, config: AdversarialLossConfig) -> Fraction:
        """Count images, reconstructions and the generator's loss; R1 takes a gradient and its backward pass."""
        return Fraction(3) + (Fraction(2, config.r1_every) if config.r1_weight else 0)

    def __call__(self, images: Tensor, output: Output, losses: Mapping[str, Tensor]) -> tuple[Tensor, Losses]:
        """Return the generator's weighted loss ()."""
        # Without DistributedDataParallel: the weights get no gradients here, so there is nothing to synchronize.
        with frozen(self.discriminator.network) as discriminator:
            logits, _ = discriminator(output.images)
        generator, nll = generator_loss(logits, self.config.kind), losses["nll"]
        weight = torch.tensor(self.config.weight, device=nll.device, dtype=nll.dtype)
        if self.config.adaptive:
            limit = adaptive_limit(self.autoencoder, images[0].numel())
            weight = weight * self._adaptive_weight(nll, generator, limit)
        return weight * generator, {"generator": generator, "adversarial_weight": weight}

    def _adaptive_weight(self, nll: Tensor, generator: Tensor, limit: float) -> Tensor:
        """Return the adaptive weight () from the gradients of all processes."""
        # If the backward pass is in float16, gradients of means underflow unless they are scaled.
        scaler, scale = self.accelerator.scaler, torch.ones((), device=nll.device)
        scale = scale if scaler is None else scaler.scale(scale)
        gradients = [
            torch.autograd.grad(scale * term, self.last_layer, retain_graph=True)[0] for term in (nll, generator)
        ]
        mean_nll, mean_generator = (self.accelerator.reduce(at_least_float32(g) / scale, "mean") for g in gradients)
        return adaptive_weight(mean_nll, mean_generator, limit)

    def end_step(self, seen: Sequence[MicroBatch], step: int) -> tuple[Losses, dict[str, Tensor]]:
        """Train the discriminator on the images of the step and their reconstructions."""
        found, observed = [], []
        for batch in self.discriminator.micro_batches(seen):
            terms, logits = self._discriminator_terms(batch.images, batch.output.images, step)
            self.discriminator.backward(reduce(torch.add, terms.values()) / len(seen))
            found.append({name: term.detach() for name, term in terms.items()})
            observed.append(observe_logits(*logits.detach().chunk(2)))
        norm = self.discriminator.step(self.clip)
        return mean_of(found) | {"discriminator_gradient_norm": norm}, mean_of(observed)

    def _discriminator_terms(self, images: Tensor, reconstructions: Tensor, step: int) -> tuple[Losses, Tensor]:
        """Return `discriminator` and, every `r1_every` steps, `r1`; and the logits of images and reconstructions."""
        config = self.config
        penalized = bool(config.r1_weight) and step % config.r1_every == 0
        # One forward pass over both halves: DistributedDataParallel allows one for each backward pass.
        both = torch.cat([images, reconstructions])
        logits, penalties = self.discriminator.wrapped(both, len(images) if penalized else 0)
        real, fake = logits.chunk(2)
        terms = {"discriminator": discriminator_loss(real, fake, config.kind)}
        if penalized:
            terms["r1"] = config.r1_every * r1_loss(penalties, config.r1_weight)
        return terms, logits


def generator_loss(logits_fake: Tensor, kind: str) -> Tensor:
    """Return -E[D(G(x))] for hinge (Lim and Ye 2017, equation 8) and vanilla, as in VQGAN.

    For non_saturating, return -E[log sigmoid(D(G(x)))] (Goodfellow et al. 2014, section 3).
    """
    if kind == "non_saturating":
        return F.softplus(-at_least_float32(logits_fake)).mean()
    return -at_least_float32(logits_fake).mean()


def discriminator_loss(logits_real: Tensor, logits_fake: Tensor, kind: str) -> Tensor:
    """Return the hinge loss (Lim and Ye 2017, equation 7) or the logistic loss (Goodfellow et al. 2014, equation 1).

    Hinge and vanilla are halved as in VQGAN; non_saturating is not, so that published weights of R1 apply.
    """
    real, fake = at_least_float32(logits_real), at_least_float32(logits_fake)
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    both = F.softplus(-real).mean() + F.softplus(fake).mean()
    return 0.5 * both if kind == "vanilla" else both


def r1_loss(penalties: Tensor, weight: float) -> Tensor:
    """Return gamma / 2 E[|grad D(x)|^2] from squared norms (B,) at real images (Mescheder et al. 2018, equation 9)."""
    return 0.5 * weight * penalties.mean()


def adaptive_weight(nll_gradient: Tensor, generator_gradient: Tensor, limit: float = ADAPTIVE_LIMIT) -> Tensor:
    """Return |grad nll| / |grad generator loss| at the decoder's last layer (Esser et al. 2021, equation 7).

    The weight is at most `limit`, finite if gradients overflowed, and 0 if the ratio is NaN.
    """
    ratio = at_least_float32(nll_gradient).norm() / (at_least_float32(generator_gradient).norm() + 1e-4)
    return ratio.nan_to_num(nan=0.0).clamp(0.0, limit).detach()


def adaptive_limit(autoencoder: AutoencoderConfig, values: int) -> float:
    """Return the largest adaptive weight for images of `values` values (channels x height x width).

    The published code limits the ratio to 1e4. For VQ its nll is a mean over values, as here. For KL it is a sum over
    an image's values (Rombach et al. 2022, LPIPSWithDiscriminator), so that its ratio is `values` times ours.
    """
    return ADAPTIVE_LIMIT if autoencoder.bottleneck.has_codebook else ADAPTIVE_LIMIT / values


@torch.no_grad()
def observe_logits(real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """Return the mean logits, and the share of patches that the discriminator classifies correctly."""
    right = torch.cat([real.flatten() > 0, fake.flatten() < 0])
    return {"logits_real": real.mean(), "logits_fake": fake.mean(), "discriminator_accuracy": right.float().mean()}


@contextmanager
def frozen(network: nn.Module) -> Iterator[nn.Module]:
    """Let gradients flow through a network but not into its weights."""
    needed = [weight.requires_grad for weight in network.parameters()]
    network.requires_grad_(False)
    try:
        yield network
    finally:
        for weight, need in zip(network.parameters(), needed, strict=True):
            weight.requires_grad_(need)
