"""An autoencoder over many pictures: the statistics of its latents, and the posteriors kept for training."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ldm.checkpoint.pretrained import Autoencoder
from ldm.data.broken import Broken, UnreadableError
from ldm.data.pictures import fit, to_tensor
from ldm.data.preview import some_pictures
from ldm.data.progress import track
from ldm.data.shards import Shards
from ldm.data.sources import Source

BATCH = 64


def measure(
    autoencoder: Autoencoder, source: Source | Shards, size: int, pictures: int, accelerator: Accelerator
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
    mine = some_pictures(source, pictures, size, accelerator.process_index, accelerator.num_processes)
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


class MomentsCache:
    """Posterior moments of every picture of a source, (N, M, h, w) float32, memory-mapped from a file of the run.

    M is 2C, or C for an autoencoder of kind vq. All processes encode their part at construction. The file's name tells
    of which autoencoder and pictures it is, and it gets that name when it is whole: a resumed run finds it, anything
    else is encoded anew. `unreadable` tells, by index, of pictures that could not be read; the moments in their places
    mean nothing.
    """

    def __init__(
        self, folder: Path, autoencoder: Autoencoder, source: Source, size: int, accelerator: Accelerator
    ) -> None:
        self.path = folder / f"moments-{_fingerprint(autoencoder, source, size)}.npy"
        if not (self.path.is_file() and self._beside().is_file()):
            self._encode(autoencoder, source, size, accelerator)
        self._moments = np.load(self.path, mmap_mode="r")
        told: dict[str, list[str]] = json.loads(self._beside().read_text())
        self.unreadable = {int(index): Broken(*words) for index, words in told.items()}

    def __getitem__(self, indices: list[int]) -> Tensor:
        """Moments (B, M, h, w) of the pictures at `indices`."""
        return torch.from_numpy(self._moments[indices])

    def _beside(self) -> Path:
        return self.path.with_suffix(".broken.json")

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
        unreadable: dict[int, Broken] = {}
        encoded = _moments(autoencoder, _or_blank(source, mine, size, unreadable), accelerator)
        if accelerator.is_main_process:
            encoded = track(encoded, f"encoding batches of {BATCH} pictures, once", math.ceil(len(mine) / BATCH))
        for moments in encoded:
            cached[mine[done : done + len(moments)]] = moments.float().cpu().numpy()
            done += len(moments)
        cached.flush()
        everywhere = dict(gather_object(list(unreadable.items())))  # waits for everyone
        if accelerator.is_main_process:
            told = {index: [broken.name, broken.reason] for index, broken in everywhere.items()}
            self._beside().write_text(json.dumps(told))
            work.replace(self.path)
        accelerator.wait_for_everyone()


def _fingerprint(autoencoder: Autoencoder, source: Source, size: int) -> str:
    """A digest of the autoencoder's weights, and of number, size and a sample of the pictures."""
    digest = hashlib.blake2b(f"{len(source)} {size}".encode(), digest_size=8)
    for name, weight in autoencoder.state_dict().items():
        digest.update(name.encode() + weight.float().cpu().contiguous().numpy().tobytes())
    for index in np.linspace(0, len(source) - 1, min(len(source), 16)).astype(int):
        [picture] = _or_blank(source, [int(index)], size, {})
        digest.update(picture.tobytes())
    return digest.hexdigest()


def _or_blank(source: Source, indices: Iterable[int], size: int, unreadable: dict[int, Broken]) -> Iterator[np.ndarray]:
    """The pictures at `indices`; in place of one that cannot be read a black one, and an entry in `unreadable`."""
    for index in map(int, indices):
        try:
            yield fit(source.picture(index), size)
        except UnreadableError as error:
            unreadable[index] = error.broken
            yield np.zeros((size, size, 3), dtype=np.uint8)


def _moments(autoencoder: Autoencoder, pictures: Iterable[np.ndarray], accelerator: Accelerator) -> Iterator[Tensor]:
    rest = iter(pictures)
    while batch := list(islice(rest, BATCH)):
        with torch.no_grad():
            yield autoencoder.encode(to_tensor(np.stack(batch)).to(accelerator.device)).moments
