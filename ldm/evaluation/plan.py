"""What is to be measured, on how many images, and what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.errors import UserError
from ldm.evaluation.features import Features, make_features
from ldm.evaluation.scenes.scores import SceneScores

DISTANCES = ("fid", "kid", "precision")  # of samples from the data
SAMPLED = (*DISTANCES, "clip", "scenes", "neighbours")  # what images are drawn for
FIDELITY = ("psnr", "ssim", "lpips")  # of each reconstruction to its image
RECONSTRUCTED = ("rfid", *FIDELITY, "codebook")  # what the autoencoder is asked for
METRICS = (*DISTANCES, "clip", "scenes", *RECONSTRUCTED, "neighbours")
IN_FEATURES = (*DISTANCES, "rfid", "neighbours")
DEFAULT_FEATURES = "inception"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How samples are drawn; their seeds are `seed`, `seed + 1`, ..."""

    guidance_scale: float | None = None  # None: the model's own
    quality: str = "exact"  # what else is chosen for the next two; see `ldm.generation.quality`
    num_inference_steps: int | None = None
    sampler: str | None = None
    eta: float | None = None  # for ddim alone; None: that of the sampler
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure, on how many images, and how the samples are drawn; UserError for what means nothing."""

    metrics: tuple[str, ...] = ("fid", "kid", "precision", "rfid", "psnr", "ssim")
    samples: int = 1000  # images drawn, and images reconstructed
    images: int | None = None  # of the data, that they are compared with as a whole; None: as many as samples
    statistics: Path | None = None  # file of the data's features: read if it is there, else written
    features: str | None = None  # None: Inception's
    clip: str | None = None  # a CLIP of transformers for the score of text and image
    sampling: Sampling | None = None  # None: as `Sampling` has it
    batch_size: int = 32

    def __post_init__(self) -> None:
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown or not self.metrics:
            raise UserError(f"no measure {', '.join(map(repr, unknown)) or 'given'}: there are {', '.join(METRICS)}")
        if min(self.samples, self.references) < 2 or self.batch_size < 1:
            raise UserError(
                f"{self.samples} samples and {self.references} images of the data in batches of {self.batch_size}: "
                "give at least 2, and at least 1 at a time"
            )
        if "clip" in self.metrics and self.clip is None:
            raise UserError("the CLIP score needs a CLIP model: --clip takes a folder or a Hub id")
        if "clip" not in self.metrics and self.clip is not None:
            raise UserError(f"--clip {self.clip} is for the CLIP score alone: add clip to --metrics")
        self._refuse_unused(
            self.sampling, SAMPLED, "how samples are drawn (--cfg, --quality, --steps, --sampler, --eta, --seed)"
        )
        self._refuse_unused(self.features, IN_FEATURES, f"--features {self.features}")
        self._refuse_unused(self.statistics, IN_FEATURES, f"--statistics {self.statistics}")
        self._refuse_unused(self.images, IN_FEATURES, f"--images {self.images}")

        if self.statistics is not None and not self.statistics.absolute().parent.is_dir():
            raise UserError(f"no folder {self.statistics.parent} to write the statistics to")

    def _refuse_unused(self, value: object, users: Sequence[str], words: str) -> None:
        if value is not None and not self.wants(users):
            told = ", ".join(self.metrics)
            raise UserError(f"{words} means nothing to {told}: leave it out, or measure one of {', '.join(users)}")

    def wants(self, names: Sequence[str]) -> bool:
        """Whether any of these is to be measured."""
        return any(name in self.metrics for name in names)

    @property
    def references(self) -> int:
        """Images of the data that samples and reconstructions are compared with as a whole."""
        return self.samples if self.images is None else self.images

    @property
    def draws(self) -> bool:
        """Whether samples are drawn; otherwise an autoencoder is enough."""
        return self.wants(SAMPLED)

    def make_features(self) -> Features | None:
        """The features that the measures need; None where they need none."""
        return make_features(self.features or DEFAULT_FEATURES) if self.wants(IN_FEATURES) else None


@dataclass(frozen=True)
class Report:
    """The numbers, how they came about, and a picture of samples beside their nearest images of the data."""

    results: dict[str, float]
    settings: dict[str, Any]
    neighbours: Image.Image | None = None
    scenes: SceneScores | None = None

    def as_dict(self) -> dict[str, Any]:
        """Everything but the image."""
        whole: dict[str, Any] = {"results": self.results, "settings": self.settings}
        return whole if self.scenes is None else whole | {"scenes": self.scenes.as_dict()}
