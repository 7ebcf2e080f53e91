"""An autoencoder over many pictures: the statistics of its latents, and the posteriors kept for training."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ldm.checkpoint.pretrained import Autoencoder
from ldm.data.loader import fit
from ldm.data.pictures import to_tensor
from ldm.data.progress import track
from ldm.data.sources import Source

BATCH = 64


def measure(
    autoencoder: Autoencoder, source: Source, size: int, pictures: int, accelerator: Accelerator
) -> dict[str, float]:
    """Set the autoencoder's latent statistics to those of `pictures` pictures spread evenly over the source.

    Returns the mean and standard deviation over all channels.
    """
    means, deviations = channel_statistics(autoencoder, source, size, pictures, accelerator)
    autoencoder.set_statistics(means, deviations)
    spread = (deviations.square().mean() + means.var(correction=0)).sqrt()
    return {"latent_mean": round(means.mean().item(), 4), "latent_std": round(spread.item(), 4)}


@torch.no_grad()
def channel_statistics(
    autoencoder: Autoencoder, source: Source, size: int, pictures: int, accelerator: Accelerator
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of z over `pictures` pictures spread evenly over the source, in float64.

    They are those of posterior samples, summed over the positions of all pictures and over all processes.
    """
    count = min(pictures, len(source))
    chosen = np.linspace(0, len(source) - 1, count).round().astype(int)
    mine = chosen[accelerator.process_index :: accelerator.num_processes]
    channels = autoencoder.config.latent_channels
    sums = torch.zeros(2, channels, dtype=torch.float64)
    positions = torch.zeros((), dtype=torch.float64)
    for moments in _moments(autoencoder, source, mine, size, accelerator):
        posterior = autoencoder.posterior(moments.cpu().double())
        second = posterior.mean.square() + posterior.variance  # (B, C, h, w)
        sums += torch.stack([posterior.mean.sum((0, 2, 3)), second.sum((0, 2, 3))])
        positions += second[:, 0].numel()
    totals = torch.cat([sums.flatten(), positions[None]]).to(accelerator.device)
    totals = accelerator.reduce(totals, "sum").cpu()
    means, seconds = (totals[:-1] / totals[-1]).view(2, channels)
    return means, (seconds - means.square()).sqrt()


class MomentsCache:
    """Posterior moments of every picture of a source, (N, M, h, w) float32, memory-mapped from a file of the run.

    M is 2C, or C for an autoencoder of kind vq. All processes encode their part at construction. The file's name tells
    of which autoencoder and pictures it is, and it gets that name when it is whole: a resumed run finds it, anything
    else is encoded anew.
    """

    def __init__(
        self, folder: Path, autoencoder: Autoencoder, source: Source, size: int, accelerator: Accelerator
    ) -> None:
        self.path = folder / f"moments-{_fingerprint(autoencoder, source, size)}.npy"
        if not self.path.is_file():
            self._encode(autoencoder, source, size, accelerator)
        self._moments = np.load(self.path, mmap_mode="r")

    def __getitem__(self, indices: list[int]) -> Tensor:
        """Moments (B, M, h, w) of the pictures at `indices`."""
        return torch.from_numpy(self._moments[indices])

    def _encode(self, autoencoder: Autoencoder, source: Source, size: int, accelerator: Accelerator) -> None:
        work = self.path.with_suffix(".tmp")
        side = size // autoencoder.config.downsampling_factor
        network = autoencoder.config
        shape = (len(source), network.moments * network.latent_channels, side, side)
        if accelerator.is_main_process:
            np.lib.format.open_memmap(work, mode="w+", dtype=np.float32, shape=shape).flush()
        accelerator.wait_for_everyone()
        cached = np.load(work, mmap_mode="r+")
        mine = np.arange(accelerator.process_index, len(source), accelerator.num_processes)
        done = 0
        encoded = _moments(autoencoder, source, mine, size, accelerator)
        if accelerator.is_main_process:
            encoded = track(encoded, f"encoding batches of {BATCH} pictures, once", math.ceil(len(mine) / BATCH))
        for moments in encoded:
            cached[mine[done : done + len(moments)]] = moments.float().cpu().numpy()
            done += len(moments)
        cached.flush()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            work.replace(self.path)
        accelerator.wait_for_everyone()


def _fingerprint(autoencoder: Autoencoder, source: Source, size: int) -> str:
    """A digest of the autoencoder's weights, and of number, size and a sample of the pictures."""
    digest = hashlib.blake2b(f"{len(source)} {size}".encode(), digest_size=8)
    for name, weight in autoencoder.state_dict().items():
        digest.update(name.encode() + weight.float().cpu().contiguous().numpy().tobytes())
    for index in np.linspace(0, len(source) - 1, min(len(source), 16)).astype(int):
        digest.update(fit(source.picture(int(index)), size).tobytes())
    return digest.hexdigest()


def _moments(
    autoencoder: Autoencoder, source: Source, indices: np.ndarray, size: int, accelerator: Accelerator
) -> Iterator[Tensor]:
    with torch.no_grad():
        for first in range(0, len(indices), BATCH):
            pictures = np.stack([fit(source.picture(int(i)), size) for i in indices[first : first + BATCH]])
            yield autoencoder.encode(to_tensor(pictures).to(accelerator.device)).moments
