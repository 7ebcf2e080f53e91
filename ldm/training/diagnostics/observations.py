"""Statistics of a step for `diagnostics`, without gradients, as tensors on the device.

All are means over samples, so that they can be averaged over micro-batches, steps and processes.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def of_latents(latents: Tensor, variance: Tensor | None = None) -> dict[str, Tensor]:
    """Return first and second moments (C,) of latents (B, C, h, w), or of normal distributions with a variance."""
    squares = latents.float().square()
    squares = squares if variance is None else squares + variance
    return {"latent_mean": latents.float().mean((0, 2, 3)), "latent_mean_square": squares.mean((0, 2, 3))}


@torch.no_grad()
def of_gradient(norm: Tensor, limit: float | None) -> dict[str, Tensor]:
    """Return whether the gradient of a step was clipped to `limit`, 0 or 1; an empty dictionary without a limit."""
    return {} if limit is None else {"clipped": (norm > limit).float()}


def mean_of(found: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of what several micro-batches found, by name."""
    return {name: torch.stack([terms[name] for terms in found]).mean(0) for name in found[0]}
