"""Vector quantisation: every position of a feature map becomes the nearest vector of a codebook (van den Oord 2017).

The codebook is named as in diffusers' `VQModel`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm.models.precision import at_least_float32, full_precision

DISTANCES = 2**24  # computed at a time, 64 MiB of them, so that memory stays bounded whatever the image's size


class Quantizer(nn.Module):
    """A codebook of `size` vectors of `channels` values."""

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, channels)
        nn.init.uniform_(self.embedding.weight, -1 / size, 1 / size)

    def forward(self, z: Tensor) -> Tensor:
        """z (B, C, h, w) to the nearest codebook vectors, in float32 at least.

        The gradient passes straight through to z; the codebook gets none (van den Oord et al. 2017, section 3.2).
        """
        return self.lookup(self.indices(z)).detach() + (z - z.detach())

    @torch.no_grad()
    def indices(self, z: Tensor) -> Tensor:
        """Indices (B, h, w) of the codebook vectors that are nearest to z (B, C, h, w)."""
        flat = z.permute(0, 2, 3, 1).flatten(0, 2)  # (Bhw, C)
        return nearest(flat, self.embedding.weight).view(z.shape[0], *z.shape[2:])

    def lookup(self, indices: Tensor) -> Tensor:
        """Codebook vectors (B, C, h, w) of indices (B, h, w)."""
        return at_least_float32(self.embedding(indices)).permute(0, 3, 1, 2)


def nearest(points: Tensor, codebook: Tensor) -> Tensor:
    """Index (N,) of the row of the codebook (K, C) nearest to each point (N, C); the first of several equally near.

    |p - e|^2 without |p|^2, which is the same for all e; both as seen from the codebook's mean, so that little cancels.
    """
    points, codebook = (
        at_least_float32(points),
        at_least_float32(codebook),
    )  # in which the nearest of thousands of vectors can be told
    centre = codebook.mean(0)
    codebook = codebook - centre
    halves = 0.5 * codebook.square().sum(1)  # (K,)
    rows = max(1, DISTANCES // len(codebook))
    with full_precision(points.device):
        return torch.cat([(halves - (part - centre) @ codebook.t()).argmin(1) for part in points.split(rows)])
