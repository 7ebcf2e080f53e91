"""An autoencoder over many pictures: the statistics of its latents, and the posteriors kept for training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ldm.checkpoint.pretrained import Autoencoder
from ldm.data.loader import fit
from ldm.data.pictures import to_tensor
from ldm.data.sources import Source

BATCH = 64


@torch.no_grad()
def measure(
    autoencoder: Autoencoder, source: Source, size: int, pictures: int, accelerator: Accelerator
) -> dict[str, float]:
    """Set the autoencoder's latent statistics to those of `pictures` pictures spread evenly over the source.

    Means and variances are those of posterior samples, summed in float64 over the positions of all pictures and over
    all processes. Returns the mean and standard deviation over all channels.
    """
    count = min(pictures, len(source))
    chosen = np.linspace(0, len(source) - 1, count).round().astype(int)
    mine = chosen[accelerator.process_index :: accelerator.num_processes]
    channels = autoencoder.config.latent_channels
    sums = torch.zeros(2, channels, dtype=torch.float64)
    positions = torch.zeros((), dtype=torch.float64)
    for moments in _moments(autoencoder, source, mine, size, accelerator):
        mean, log_variance = moments.cpu().double().chunk(2, dim=1)  # (B, C, h, w)
        second = mean.square() + log_variance.clamp(-30, 20).exp()
        sums += torch.stack([mean.sum((0, 2, 3)), second.sum((0, 2, 3))])
        positions += mean[:, 0].numel()
    totals = torch.cat([sums.flatten(), positions[None]]).to(accelerator.device)
    totals = accelerator.reduce(totals, "sum").cpu()
    means, seconds = (totals[:-1] / totals[-1]).view(2, channels)
    autoencoder.set_statistics(means, (seconds - means.square()).sqrt())
    spread = (seconds.mean() - means.mean().square()).sqrt()
    return {"latent_mean": round(means.mean().item(), 4), "latent_std": round(spread.item(), 4)}


class MomentsCache:
    """Posterior moments of every picture of a source, (N, 2C, h, w) float32, in one memory-mapped file of the run.

    All processes encode their part at construction; the file of an interrupted run is made anew.
    """

    def __init__(
        self, path: Path, autoencoder: Autoencoder, source: Source, size: int, accelerator: Accelerator
    ) -> None:
        side = size // autoencoder.config.downsampling_factor
        shape = (len(source), 2 * autoencoder.config.latent_channels, side, side)
        if accelerator.is_main_process:
            np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape).flush()
        accelerator.wait_for_everyone()
        self._moments = np.load(path, mmap_mode="r+")
        mine = np.arange(accelerator.process_index, len(source), accelerator.num_processes)
        done = 0
        for moments in _moments(autoencoder, source, mine, size, accelerator):
            self._moments[mine[done : done + len(moments)]] = moments.float().cpu().numpy()
            done += len(moments)
        self._moments.flush()
        accelerator.wait_for_everyone()

    def __getitem__(self, indices: list[int]) -> Tensor:
        """Moments (B, 2C, h, w) of the pictures at `indices`."""
        return torch.from_numpy(self._moments[indices])


def _moments(
    autoencoder: Autoencoder, source: Source, indices: np.ndarray, size: int, accelerator: Accelerator
) -> Iterator[Tensor]:
    with torch.no_grad():
        for first in range(0, len(indices), BATCH):
            pictures = np.stack([fit(source.picture(int(i)), size) for i in indices[first : first + BATCH]])
            yield autoencoder.encode(to_tensor(pictures).to(accelerator.device)).moments
