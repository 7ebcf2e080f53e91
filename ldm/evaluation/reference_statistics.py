"""Reference statistics: features of a data set with their mean and covariance, in a file that tells what they are of.

What `pytorch-fid --save-stats` keeps, with the features besides, which KID, precision and recall, and neighbours need.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ldm.data.images import RESIZING
from ldm.data.sources import Source
from ldm.errors import UserError
from ldm.evaluation.distances import FeatureSet, Moments
from ldm.evaluation.features import Features
from ldm.evaluation.reading import FeatureReader, Reader, read_through
from ldm.processes import ProcessShare
from ldm.storage.store import load_tensors, save_tensors

TENSORS = {"features", "mean", "covariance"}


@dataclass(frozen=True)
class Facts:
    """What features are of: which images, how they were made one size, and which network saw them."""

    data: str  # digest of the images' names and versions
    images: str  # how many, from the first on
    size: str  # side in pixels
    resizing: str  # of the data's images to that size
    features: str
    features_resizing: str  # to what the network takes
    weights: str  # digest of the network's

    @classmethod
    def of(cls, source: Source, size: int, count: int, features: Features) -> Facts:
        """Of the first `count` images of a source, found without decoding them."""
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


@dataclass(frozen=True)
class StatisticsFile:
    """A safetensors file of features (N, D), their mean (D,) and covariance (D, D), with the facts in its header."""

    path: Path
    facts: Facts

    def load(self) -> FeatureSet:
        """What the file holds; UserError if it is damaged, or of other images, sizes or networks."""
        found = _header(self.path)
        differing = [
            f"{field.name.replace('_', ' ')} {found.get(field.name, 'unknown')}, not {getattr(self.facts, field.name)}"
            for field in fields(self.facts)
            if found.get(field.name) != getattr(self.facts, field.name)
        ]
        if differing:
            raise UserError(
                f"{self.path} holds statistics of something else ({'; '.join(differing)}): "
                "give another file, or remove it to have it made anew"
            )
        tensors = load_tensors(self.path)
        if tensors.keys() != TENSORS:
            raise UserError(f"{self.path} is damaged, it lacks tensors: remove it to have it made anew")
        return FeatureSet(tensors["features"], Moments(tensors["mean"], tensors["covariance"]))

    def save(self, found: FeatureSet) -> None:
        """Write features and moments; UserError where the file cannot be written."""
        tensors = {"features": found.features, "mean": found.moments.mean, "covariance": found.moments.covariance}
        try:
            save_tensors(self.path, tensors, asdict(self.facts))
        except OSError as error:
            raise UserError(f"the statistics cannot be written to {self.path}: {error.strerror or error}") from error


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
    """Features of the first `count` images of a source, and whether they come from the file at `path`.

    A file that is not there yet is written. `others` see their images of the source, which is read once for all.
    """
    share = share or ProcessShare()
    file = None if path is None else StatisticsFile(path, Facts.of(source, size, count, features))
    if file is not None and all(share.gather([file.path.exists()])):
        known = file.load()
        read_through(source, size, others, share, batch_size)
        return known, True
    reader = FeatureReader(count, features)
    read_through(source, size, [reader, *others], share, batch_size)
    made = FeatureSet(reader.gathered(share))
    if file is not None and share.is_first:
        file.save(made)
    return made, False


def _header(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} holds no statistics ({error}): remove it to have it made anew") from error
