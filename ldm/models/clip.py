"""CLIP (Radford et al. 2021) as a judge of images: one space for images and texts, of either library."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Clip(nn.Module):
    """A frozen CLIP whose gradient reaches the images; embeddings have length 1.

    `embed` and `read` are the network's two halves: normalised images (N, 3, side, side), and texts, to (N, D).
    """

    def __init__(
        self,
        network: nn.Module,
        embed: Callable[[Tensor], Tensor],
        read: Callable[[list[str]], Tensor],
        side: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.network, self.side, self._embed, self._read = network, side, embed, read
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def images(self, images: Tensor) -> Tensor:
        """Embed images (N, 3, side, side) in [-1, 1] as (N, D)."""
        return F.normalize(self._embed(((images.float() + 1) / 2 - self.mean) / self.std), dim=-1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts as (N, D); text that exceeds CLIP's limit is cut."""
        return F.normalize(self._read(list(texts)), dim=-1)
