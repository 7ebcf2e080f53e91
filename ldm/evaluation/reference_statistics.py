"""Features of a data set with their mean and covariance, in a file that records what they were computed from.

The file extends that of `pytorch-fid --save-stats` by the features, which KID, precision, recall and neighbours need.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError

from ldm.data.images import RESIZING
from ldm.data.sources import Source
from ldm.errors import UserError
from ldm.evaluation.distances import FeatureSet, Moments
from ldm.evaluation.features import Features
from ldm.evaluation.reading import FeatureReader, Reader, read_through
from ldm.processes import ProcessShare
from ldm.storage.store import load_metadata, load_tensors, save_tensors

TENSORS = {"features", "mean", "covariance"}


@dataclass(frozen=True)
class FeatureOrigin:
    """What features were computed from: which images, how they were resized, and which network."""

    data: str  # digest of the images' names and versions
    images: str  # number of images, from the first
    size: str  # side in pixels
    resizing: str  # of the data's images to that size
    features: str
    features_resizing: str  # to the input of the network
    weights: str  # digest of the network's weights

    @classmethod
    def of(cls, source: Source, size: int, count: int, features: Features) -> FeatureOrigin:
        """Return the origin of the first `count` images of a source, without decoding them."""
        digest = hashlib.blake2b(digest_size=16)
        for number in range(count):
            digest.update(source.stamp(number).encode("utf-8", "surrogatepass") + b"\0")
        return cls(
            data=digest.hexdigest(),
            images=str(count),
            size=str(size),
            resizing=RESIZING,
            features=features.name,
            features_resizing=features.resizing,
            weights=features.digest(),
        )


def load_statistics(path: Path, origin: FeatureOrigin) -> FeatureSet:
    """Load features (N, D), their mean (D,) and covariance (D, D).

    Raises:
        UserError: if the file is damaged, or was computed from other images, sizes or networks.
    """
    try:
        found = load_metadata(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} has no statistics ({error}): remove it to compute them again") from error
    differences = [
        f"{name.replace('_', ' ')} {found.get(name, 'unknown')}, not {value}"
        for name, value in asdict(origin).items()
        if found.get(name) != value
    ]
    if differences:
        raise UserError(
            f"{path} has statistics of something else ({'; '.join(differences)}): "
            "give another file, or remove it to compute them again"
        )
    tensors = load_tensors(path)
    if tensors.keys() != TENSORS:
        raise UserError(f"{path} lacks tensors and is damaged: remove it to compute the statistics again")
    return FeatureSet(tensors["features"], Moments(tensors["mean"], tensors["covariance"]))


def save_statistics(path: Path, origin: FeatureOrigin, found: FeatureSet) -> None:
    """Write features, their moments and their origin to a safetensors file."""
    tensors = {"features": found.features, "mean": found.moments.mean, "covariance": found.moments.covariance}
    try:
        save_tensors(path, tensors, asdict(origin))
    except OSError as error:
        raise UserError(f"the statistics cannot be written to {path}: {error.strerror or error}") from error


def read_reference(
    source: Source,
    size: int,
    count: int,
    features: Features,
    path: Path | None = None,
    others: Sequence[Reader] = (),
    share: ProcessShare | None = None,
    batch_size: int = 32,
) -> tuple[FeatureSet, bool]:
    """Return the features of the first `count` images of a source, and whether they were loaded from `path`.

    A missing file is written. Images are passed to the `others` as well.
    """
    share = share or ProcessShare()
    origin = None if path is None else FeatureOrigin.of(source, size, count, features)
    if path is not None and origin is not None and all(share.gather([path.exists()])):
        known = load_statistics(path, origin)
        read_through(source, size, others, share, batch_size)
        return known, True
    reader = FeatureReader(count, features)
    read_through(source, size, [reader, *others], share, batch_size)
    found = FeatureSet(reader.stacked(share))
    if path is not None and origin is not None and share.is_first:
        save_statistics(path, origin, found)
    return found, False
