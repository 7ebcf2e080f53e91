"""Latents of a batch, and latent statistics of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ldm.data.cached import CachedData
from ldm.data.images import to_tensor
from ldm.data.loader import Batch
from ldm.data.preview import some_images
from ldm.data.random import StepRandom
from ldm.data.sources import Source
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.precision import require_finite
from ldm.training.transfer import moved

BATCH = 64


@torch.no_grad()
def sampled(
    batch: Batch, autoencoder: Autoencoder, cache: CachedData | None, draws: StepRandom, device: torch.device
) -> Tensor:
    """Sample latents (B, C, h, w) of a batch's images from their posteriors, which a cache may contain."""
    if cache is not None:
        posterior = autoencoder.posterior(moved(cache.moments(batch.indices), device))
    else:
        assert batch.images is not None
        posterior = autoencoder.encode(moved(batch.images, device))
    noise = draws.normal("posterior", batch.step, batch.slots, posterior.mode().shape[1:])
    return posterior.sample(noise=moved(noise, device))


def measure(
    autoencoder: Autoencoder, source: Source, size: int, images: int, accelerator: Accelerator
) -> dict[str, Any]:
    """Measure the autoencoder's latent statistics over `images` images spread evenly over the source, and set them.

    Return mean and standard deviation of z over all channels together and of each channel.
    """
    means, deviations = channel_statistics(autoencoder, source, size, images, accelerator)
    autoencoder.set_statistics(means, deviations)
    spread = (deviations.square().mean() + means.var(correction=0)).sqrt()
    return {
        "latent_mean": _round(means.mean().item()),
        "latent_std": _round(spread.item()),
        "latent_channel_mean": list(map(_round, means.tolist())),
        "latent_channel_std": list(map(_round, deviations.tolist())),
    }


def _round(value: float) -> float:
    return float(f"{value:.4g}")


@torch.no_grad()
def channel_statistics(
    autoencoder: Autoencoder, source: Source, size: int, images: int, accelerator: Accelerator
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (C,) of z over `images` images spread evenly over the source, in float64.

    They are the moments of posterior samples over all positions, images and processes.
    """
    mine = some_images(source, images, size, accelerator.process_index, accelerator.num_processes)
    channels = autoencoder.config.latent_channels
    sums = torch.zeros(2, channels, dtype=torch.float64)
    positions = torch.zeros((), dtype=torch.float64)
    for moments in _moments(autoencoder, mine, accelerator):
        posterior = autoencoder.posterior(moments.cpu().double())
        second = posterior.mean.square() + posterior.variance  # (B, C, h, w)
        sums += torch.stack([posterior.mean.sum((0, 2, 3)), second.sum((0, 2, 3))])
        positions += second[:, 0].numel()
    totals = torch.cat([sums.flatten(), positions[None]]).to(accelerator.device)
    totals = accelerator.reduce(totals, "sum").cpu()
    means, seconds = (totals[:-1] / totals[-1]).view(2, channels)
    return means, (seconds - means.square()).sqrt()


def encode(autoencoder: Autoencoder, images: np.ndarray, device: torch.device) -> Tensor:
    """Encode bytes (B, H, W, 3) to posterior moments (B, M, h, w)."""
    with torch.no_grad():
        moments = autoencoder.encode(to_tensor(images).to(device)).moments
    return require_finite(moments, "the autoencoder's encoder")


def _moments(autoencoder: Autoencoder, images: Iterable[np.ndarray], accelerator: Accelerator) -> Iterator[Tensor]:
    rest = iter(images)
    while batch := list(islice(rest, BATCH)):
        yield encode(autoencoder, np.stack(batch), accelerator.device)
