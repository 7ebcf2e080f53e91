"""Training of a codebook (van den Oord et al. 2017): losses, initial k-means, moving averages, dead vectors.

All values depend on the global batch, in the order of its slots, so that one process and several compute the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from ldm.config.section import Section
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.autoencoder.distribution import LatentDistribution
from ldm.models.autoencoder.vq import Quantizer, nearest
from ldm.training.losses.term import Losses, LossTerm, MicroBatch, Output

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ldm.data.loader import Batch
    from ldm.data.random import StepRandom
    from ldm.training.stages.autoencoder import AutoencoderStage, Reconstruction

LLOYD_ITERATIONS = 10


class CodebookConfig(Section):
    """How a VQ autoencoder's codebook and encoder are trained (van den Oord et al. 2017, equation 3)."""

    weight: float = Field(1.0, ge=0)  # of |z - codebook vector|^2 per value, with gradients to the codebook
    commitment_weight: float = Field(0.25, ge=0)  # of the same distance, with gradients to the encoder
    decay: float | None = Field(None, ge=0.0, lt=1.0)  # the codebook follows averages of z instead of its loss
    start_steps: int = Field(10, ge=0)  # first steps, each of which sets the codebook to the k-means of the batch's z
    window: int = Field(100, ge=1)  # steps without use after which a vector is dead
    revive: bool = True  # move dead vectors to random z

    @model_validator(mode="after")
    def _check_decay(self) -> CodebookConfig:
        if self.decay is not None and self.weight != 1.0:
            raise ValueError("with decay the codebook follows averages and has no loss: remove weight")
        return self


class Quantized(NamedTuple):
    """Values of z and their codebook vectors."""

    z: Tensor  # (B, C, h, w)
    nearest: Tensor  # (B, C, h, w), codebook vectors, with gradients to the codebook
    indices: Tensor  # (B, h, w)


def quantize_z(quantizer: Quantizer, z: Tensor) -> Quantized:
    """Look up the codebook vectors of z (B, C, h, w)."""
    indices = quantizer.indices(z)
    return Quantized(z, quantizer.lookup(indices), indices)


class CodebookTerm(LossTerm):
    """|z - e|^2 per value, once with gradients to the encoder and once to the codebook."""

    section = CodebookConfig
    shardable = False

    def __init__(self, config: CodebookConfig, stage: AutoencoderStage) -> None:
        super().__init__(config, stage)
        self.accelerator, self.autoencoder = stage.accelerator, stage.autoencoder
        self.start_steps = 0 if stage.pretrained else config.start_steps
        averages = [autoencoder.quantize for autoencoder in stage.averages]
        self.trainer = CodebookTrainer(stage.autoencoder.quantize, averages, config, stage.accelerator, stage.random)

    @classmethod
    def fits(cls, autoencoder: AutoencoderConfig) -> bool:
        """Return whether the bottleneck has a codebook."""
        return autoencoder.bottleneck.has_codebook

    @classmethod
    def is_enabled(cls, config: Any) -> bool:
        """Return True: the commitment loss and the usage statistics are computed even if the codebook loss is off."""
        return True

    @staticmethod
    def extend(config: CodebookConfig, network: Reconstruction) -> None:
        """Exclude a codebook that follows averages from gradients."""
        network.autoencoder.quantize.requires_grad_(config.decay is None)

    @staticmethod
    def forward(config: Any, network: Reconstruction, posterior: LatentDistribution, latents: Tensor) -> Quantized:
        """Quantize z."""
        return quantize_z(network.autoencoder.quantize, posterior.mean)

    def __call__(self, images: Tensor, output: Output, losses: Mapping[str, Tensor]) -> tuple[Tensor, Losses]:
        """Return the weighted sum ()."""
        z, nearest, _ = output.terms["codebook"]
        found = {"commitment": F.mse_loss(z, nearest.detach())}
        weighted = self.config.commitment_weight * found["commitment"]
        if self.config.decay is None:
            found["codebook"] = F.mse_loss(nearest, z.detach())
            weighted = weighted + self.config.weight * found["codebook"]
        return weighted, found

    @torch.no_grad()
    def begin_step(self, batches: Sequence[Batch], step: int) -> None:
        """Set the codebook to the k-means of the batch's z in the first steps."""
        if step > self.start_steps:
            return
        with self.accelerator.autocast():
            images = [batch.images.to(self.accelerator.device) for batch in batches if batch.images is not None]
            z = torch.cat([self.autoencoder.encode(each).mean for each in images])
        self.trainer.start(z, [slot for batch in batches for slot in batch.slots], step)

    def end_step(self, seen: Sequence[MicroBatch], step: int) -> tuple[Losses, dict[str, Tensor]]:
        """Move the codebook where gradients do not."""
        slots = [slot for batch in seen for slot in batch.slots]
        return self.trainer.update([batch.output.terms["codebook"] for batch in seen], slots, step), {}

    def state(self) -> dict[str, Tensor]:
        """Return for each codebook vector the number of steps since its last use, and its moving averages."""
        return self.trainer.state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load a `state`."""
        for name, tensor in self.trainer.state.items():
            tensor.copy_(state[name])


class CodebookTrainer:
    """Move codebook vectors where gradients do not, and the vectors of the averaged autoencoders with them."""

    def __init__(
        self,
        quantizer: Quantizer,
        averages: Sequence[Quantizer],
        config: CodebookConfig,
        accelerator: Accelerator,
        random: StepRandom,
    ) -> None:
        self.config, self.accelerator, self.random = config, accelerator, random
        self.quantizer, self.averages = quantizer, averages
        weight = quantizer.embedding.weight.detach()
        self.state = {"age": torch.full((len(weight),), config.window, device=weight.device)}  # steps since last use
        if config.decay is not None:  # moving averages: number and sum of the z nearest to each vector
            self.state |= {"sizes": torch.ones(len(weight), device=weight.device), "sums": weight.clone()}

    @torch.no_grad()
    def start(self, z: Tensor, slots: Sequence[int], step: int) -> None:
        """Set the codebook to the k-means of the z (B, C, h, w) of all processes."""
        points = self._gather(z, slots)
        centres = k_means(points, len(self._weight), self.random.generator("k_means", step))
        self._move(slice(None), centres, totals(points, nearest(points, centres), len(centres))[0])

    @torch.no_grad()
    def update(self, seen: Sequence[Quantized], slots: Sequence[int], step: int) -> Losses:
        """Update averages and ages after a step and revive dead vectors.

        Return the perplexity, the exponential of the entropy of the vectors' frequencies in the global batch (K if all
        are equally frequent), and the share of vectors used in the last `window` steps.
        """
        z = torch.cat([each.z for each in seen])
        points, indices = _points(z), torch.cat([each.indices.flatten() for each in seen])
        sizes, sums = (self.accelerator.reduce(t, "sum") for t in totals(points, indices, len(self._weight)))
        if self.config.decay is not None:
            self._average(sizes, sums, self.config.decay)
        age = self.state["age"]
        age.add_(1).masked_fill_(sizes > 0, 0)
        usage = (age < self.config.window).float().mean()
        if self.config.revive and step % self.config.window == 0:
            self._revive(z, slots, step)
        return {"perplexity": torch.special.entr(sizes / sizes.sum()).sum().exp().float(), "codebook_usage": usage}

    @property
    def _weight(self) -> Tensor:
        return self.quantizer.embedding.weight

    def _average(self, sizes: Tensor, sums: Tensor, decay: float) -> None:
        """Compute e = m / N from moving averages of counts N and sums m (van den Oord et al. 2017, appendix A.1)."""
        ours, total = self.state["sizes"], self.state["sums"]
        ours.lerp_(sizes.to(ours), 1 - decay)
        total.lerp_(sums.to(total), 1 - decay)
        known = ours[:, None] > 1e-6  # vectors without recent use stay
        self._weight.copy_(torch.where(known, total / ours[:, None].clamp(min=1e-6), self._weight))

    def _revive(self, z: Tensor, slots: Sequence[int], step: int) -> None:
        """Move dead vectors to random z of this step (Dhariwal et al. 2020, section 3.1)."""
        dead = (self.state["age"] >= self.config.window).nonzero().flatten()
        if len(dead):
            points = self._gather(z, slots)
            chosen = choose(points, len(dead), self.random.generator("revival", step))
            self._move(dead, chosen, torch.ones(len(dead), device=points.device))
            self.state["age"][dead] = 0

    def _move(self, rows: Tensor | slice, vectors: Tensor, sizes: Tensor) -> None:
        """Set vectors, also in the averaged autoencoders: averaging over a jump would be meaningless."""
        self._weight[rows] = vectors.to(self._weight)
        for average in self.averages:
            weight = average.embedding.weight
            weight[rows if isinstance(rows, slice) else rows.to(weight.device)] = vectors.to(weight)
        if self.config.decay is not None:
            self.state["sizes"][rows] = sizes.to(self.state["sizes"])
            self.state["sums"][rows] = vectors.to(self.state["sums"]) * sizes[:, None].to(self.state["sums"])

    def _gather(self, z: Tensor, slots: Sequence[int]) -> Tensor:
        """Return the z (B, C, h, w) of all processes as points (N, C), in the order of the global batch."""
        order = self.accelerator.gather(torch.tensor(slots, device=z.device)).argsort()
        return _points(self.accelerator.gather(z.contiguous())[order])


def _points(z: Tensor) -> Tensor:
    return z.permute(0, 2, 3, 1).flatten(0, 2)  # (Bhw, C)


def totals(points: Tensor, indices: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return number (K,) and sum (K, C) of the points (N, C) at each index, in float64: the order hardly matters."""
    sizes = torch.bincount(indices, minlength=count).double()
    sums = torch.zeros(count, points.shape[1], dtype=torch.float64, device=points.device)
    return sizes, sums.index_add_(0, indices, points.double())


def choose(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Choose `count` of the points (N, C) at random, none twice before each was chosen once."""
    rounds = -(-count // len(points))
    order = torch.cat([torch.randperm(len(points), generator=generator) for _ in range(rounds)])
    return points[order[:count].to(points.device)]


def k_means(points: Tensor, count: int, generator: torch.Generator, iterations: int = LLOYD_ITERATIONS) -> Tensor:
    """Return centres (K, C) of points (N, C) by Lloyd's algorithm (1982) from random points."""
    centres = choose(points, count, generator)
    for _ in range(iterations):
        sizes, sums = totals(points, nearest(points, centres), count)
        means = (sums / sizes[:, None].clamp(min=1)).to(points.dtype)
        centres = torch.where(sizes[:, None] > 0, means, centres)
    return centres
