"""Plans of what to measure on how many images, and reports of the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.errors import UserError
from ldm.evaluation.features import Features, make_features
from ldm.evaluation.scenes.scores import SceneScores
from ldm.generation.request import Request

DISTANCES = ("fid", "kid", "precision")  # between samples and data
SAMPLED = (*DISTANCES, "clip", "scenes", "neighbours")  # metrics of generated images
FIDELITY = ("psnr", "ssim", "lpips")  # of a reconstruction to its image
RECONSTRUCTED = ("rfid", *FIDELITY, "codebook")  # metrics of the autoencoder
METRICS = (*DISTANCES, "clip", "scenes", *RECONSTRUCTED, "neighbours")
IN_FEATURES = (*DISTANCES, "rfid", "neighbours")
DEFAULT_FEATURES = "inception"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure, on how many images, and how to generate samples; invalid combinations raise UserError."""

    metrics: tuple[str, ...] = ("fid", "kid", "precision", "rfid", "psnr", "ssim")
    samples: int = 1000  # images to generate, and to reconstruct
    images: int | None = None  # of the data, to compare distributions with; by default as many as samples
    statistics: Path | None = None  # file of the data's features: read if it exists, else written
    features: str | None = None  # by default Inception's
    clip: str | None = None  # a CLIP model of transformers for the CLIP score
    sampling: Request | None = None  # options of generation; by default `Request()`
    batch_size: int = 32

    def __post_init__(self) -> None:
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown or not self.metrics:
            raise UserError(
                f"unknown metric {', '.join(map(repr, unknown)) or '(none given)'}: choose from {', '.join(METRICS)}"
            )
        if min(self.samples, self.references) < 2 or self.batch_size < 1:
            raise UserError(
                f"cannot compare {self.samples} samples with {self.references} images in batches of {self.batch_size}: "
                "give at least 2 of each, and a batch size of at least 1"
            )
        if "clip" in self.metrics and self.clip is None:
            raise UserError("the CLIP score needs a CLIP model: --clip takes a folder or a Hub id")
        if "clip" not in self.metrics and self.clip is not None:
            raise UserError(f"--clip {self.clip} is only used by the CLIP score: add clip to --metrics")
        self._check_used(self.sampling, SAMPLED, "sampling (--cfg, --quality, --steps, --sampler, --eta, --seed)")
        self._check_used(self.features, IN_FEATURES, f"--features {self.features}")
        self._check_used(self.statistics, IN_FEATURES, f"--statistics {self.statistics}")
        self._check_used(self.images, IN_FEATURES, f"--images {self.images}")

        if self.statistics is not None and not self.statistics.absolute().parent.is_dir():
            raise UserError(f"{self.statistics.parent} is not a folder: --statistics cannot be written there")

    def _check_used(self, value: object, users: Sequence[str], words: str) -> None:
        if value is not None and not self.wants(users):
            names = ", ".join(self.metrics)
            raise UserError(f"{words} is not used by {names}: remove it, or measure one of {', '.join(users)}")

    def wants(self, names: Sequence[str]) -> bool:
        """Return whether any of these metrics is measured."""
        return any(name in self.metrics for name in names)

    @property
    def references(self) -> int:
        """The number of reference images, from the data, for samples and reconstructions."""
        return self.samples if self.images is None else self.images

    @property
    def needs_samples(self) -> bool:
        """Whether samples are generated; otherwise an autoencoder is enough."""
        return self.wants(SAMPLED)

    def make_features(self) -> Features | None:
        """Load the features that the metrics need, if any."""
        return make_features(self.features or DEFAULT_FEATURES) if self.wants(IN_FEATURES) else None


@dataclass(frozen=True)
class Report:
    """Results, how they were measured, and an image of samples next to their nearest neighbours in the data."""

    results: dict[str, float]
    settings: dict[str, Any]
    neighbours: Image.Image | None = None
    scenes: SceneScores | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return everything except the image."""
        scenes = {} if self.scenes is None else {"scenes": self.scenes.as_dict()}
        return {"results": self.results, "settings": self.settings} | scenes
