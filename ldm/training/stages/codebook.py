"""Training of a codebook beside the autoencoder's own loss: start, moving averages, use, revival of dead vectors.

Everything is a function of the global batch, in the order of its slots, so that one process and several agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from ldm.config.losses import CodebookConfig
from ldm.data.random import StepRandom
from ldm.models.autoencoder.vq import Quantizer, nearest

LLOYD_ITERATIONS = 10


class Quantised(NamedTuple):
    """What an encoder gave and what quantisation made of it."""

    z: Tensor  # (B, C, h, w)
    nearest: Tensor  # (B, C, h, w), codebook vectors, with a gradient to the codebook
    indices: Tensor  # (B, h, w)


def quantise(quantizer: Quantizer, z: Tensor) -> Quantised:
    """z (B, C, h, w) with its codebook vectors."""
    indices = quantizer.indices(z)
    return Quantised(z, quantizer.lookup(indices), indices)


class CodebookTrainer:
    """Moves the vectors of a codebook where gradients do not, and those of its averages along with them."""

    def __init__(
        self,
        quantizer: Quantizer,
        averages: Sequence[Quantizer],
        config: CodebookConfig,
        accelerator: Accelerator,
        draws: StepRandom,
    ) -> None:
        self.config, self.accelerator, self.random = config, accelerator, draws
        self.quantizer, self.averages = quantizer, averages
        weight = quantizer.embedding.weight.detach()
        self.state = {"age": torch.full((len(weight),), config.window, device=weight.device)}  # steps since last used
        if config.decay is not None:  # moving averages of the number and the sum of the z nearest to each vector
            self.state |= {"sizes": torch.ones(len(weight), device=weight.device), "sums": weight.clone()}
        self._seen: list[Quantised] = []
        self._slots: list[int] = []

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up where `state` was written."""
        for name, tensor in self.state.items():
            tensor.copy_(state[name])

    def see(self, quantised: Quantised, slots: Sequence[int]) -> None:
        """Take note of a micro-batch of the present step."""
        self._seen.append(Quantised(*(tensor.detach() for tensor in quantised)))
        self._slots.extend(slots)

    @torch.no_grad()
    def start(self, z: Tensor, slots: Sequence[int], step: int) -> None:
        """Put the codebook at the k-means of all processes' z (B, C, h, w) of a batch."""
        points = self._gather(z, slots)
        centres = k_means(points, len(self._weight), self.random.generator("k_means", step))
        self._move(slice(None), centres, totals(points, nearest(points, centres), len(centres))[0])

    @torch.no_grad()
    def update(self, step: int) -> dict[str, Tensor]:
        """End a step: averages, use and revival; its perplexity and the share of vectors used in the last `window`.

        Perplexity is exp of the entropy of the vectors' frequencies in the global batch: K if all are used alike.
        """
        points = torch.cat([_points(seen.z) for seen in self._seen])
        indices = torch.cat([seen.indices.flatten() for seen in self._seen])
        sizes, sums = (self.accelerator.reduce(t, "sum") for t in totals(points, indices, len(self._weight)))
        if self.config.decay is not None:
            self._average(sizes, sums, self.config.decay)
        age = self.state["age"]
        age.add_(1).masked_fill_(sizes > 0, 0)
        usage = (age < self.config.window).float().mean()
        if self.config.revive and step % self.config.window == 0:
            self._revive(step)
        self._seen, self._slots = [], []
        return {"perplexity": torch.special.entr(sizes / sizes.sum()).sum().exp().float(), "codebook_usage": usage}

    @property
    def _weight(self) -> Tensor:
        return self.quantizer.embedding.weight

    def _average(self, sizes: Tensor, sums: Tensor, decay: float) -> None:
        """e = m / N, with N and m moving averages of numbers and sums (van den Oord et al. 2017, appendix A.1)."""
        ours, total = self.state["sizes"], self.state["sums"]
        ours.lerp_(sizes.to(ours), 1 - decay)
        total.lerp_(sums.to(total), 1 - decay)
        known = ours[:, None] > 1e-6  # what has not been used for so long stays where it is
        self._weight.copy_(torch.where(known, total / ours[:, None].clamp(min=1e-6), self._weight))

    def _revive(self, step: int) -> None:
        """Put vectors that nothing was nearest to at random z of this step (Dhariwal et al. 2020, section 3.1)."""
        dead = (self.state["age"] >= self.config.window).nonzero().flatten()
        if len(dead):
            points = self._gather(torch.cat([seen.z for seen in self._seen]), self._slots)
            chosen = choose(points, len(dead), self.random.generator("revival", step))
            self._move(dead, chosen, torch.ones(len(dead), device=points.device))
            self.state["age"][dead] = 0

    def _move(self, rows: Tensor | slice, vectors: Tensor, sizes: Tensor) -> None:
        """Put vectors elsewhere, those of the averages too: a jump is nothing to be averaged."""
        self._weight[rows] = vectors.to(self._weight)
        for average in self.averages:
            weight = average.embedding.weight
            weight[rows if isinstance(rows, slice) else rows.to(weight.device)] = vectors.to(weight)
        if self.config.decay is not None:
            self.state["sizes"][rows] = sizes.to(self.state["sizes"])
            self.state["sums"][rows] = vectors.to(self.state["sums"]) * sizes[:, None].to(self.state["sums"])

    def _gather(self, z: Tensor, slots: Sequence[int]) -> Tensor:
        """All processes' z (B, C, h, w) as points (N, C), in the order of the global batch."""
        order = self.accelerator.gather(torch.tensor(slots, device=z.device)).argsort()
        return _points(self.accelerator.gather(z.contiguous())[order])


def _points(z: Tensor) -> Tensor:
    return z.permute(0, 2, 3, 1).flatten(0, 2)  # (Bhw, C)


def totals(points: Tensor, indices: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Number (K,) and sum (K, C) of the points (N, C) at each index; in float64, where their order hardly matters."""
    sizes = torch.bincount(indices, minlength=count).double()
    sums = torch.zeros(count, points.shape[1], dtype=torch.float64, device=points.device)
    return sizes, sums.index_add_(0, indices, points.double())


def choose(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the points (N, C) at random; none twice before each was taken once."""
    rounds = -(-count // len(points))
    order = torch.cat([torch.randperm(len(points), generator=generator) for _ in range(rounds)])
    return points[order[:count].to(points.device)]


def k_means(points: Tensor, count: int, generator: torch.Generator, iterations: int = LLOYD_ITERATIONS) -> Tensor:
    """Centres (K, C) of points (N, C) after some iterations of Lloyd's (1982) from random points."""
    centres = choose(points, count, generator)
    for _ in range(iterations):
        sizes, sums = totals(points, nearest(points, centres), count)
        means = (sums / sizes[:, None].clamp(min=1)).to(points.dtype)
        centres = torch.where(sizes[:, None] > 0, means, centres)
    return centres
