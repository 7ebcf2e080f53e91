"""Compare a model's samples and reconstructions with the images of a data set."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldm.data.images import RESIZING, fit
from ldm.data.sources import Source
from ldm.errors import UserError
from ldm.evaluation import SAMPLING
from ldm.evaluation.distances import FeatureSet, distances
from ldm.evaluation.features import Features
from ldm.evaluation.neighbours import as_vectors, nearest, neighbour_sheet
from ldm.evaluation.plan import DISTANCES, RECONSTRUCTED, Plan, Report
from ldm.evaluation.reading import Collector, FeatureReader, Reader, as_tensor, read_through
from ldm.evaluation.reconstructions import Reconstructions
from ldm.evaluation.reference_statistics import read_reference
from ldm.evaluation.samples import caption_scorer, clip_score, generate_through, request_of
from ldm.evaluation.scenes.scores import SceneJudges, scenes_of
from ldm.generation import Request, TextToImage
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.processes import ProcessShare

NEIGHBOURS, SHOWN = 3, 8  # neighbours of each kind beside a sample, and samples in the sheet


def evaluate(
    model: TextToImage | Autoencoder,
    source: Source,
    plan: Plan,
    share: ProcessShare | None = None,
    features: Features | None = None,
) -> Report:
    """Measure the metrics of a plan on the first images of a source.

    Each process of `share` generates and encodes its part, and all of them return the whole report.

    Args:
        model: an autoencoder is enough if no samples are generated.
        features: the features of the plan, if they were already loaded.
    """
    needed = max(plan.samples, plan.references)
    if len(source) < needed:
        raise UserError(f"the metrics need {needed} images, but the data has {len(source)}")
    start = time.perf_counter()
    work = _Evaluation(model, source, plan, share or ProcessShare(), features or plan.make_features())
    work.read_data()
    results = work.measure_reconstructions() | work.measure_samples()
    scenes = None if work.scenes is None else work.scenes.scores(work.share)
    results |= {} if scenes is None else scenes.results()
    sheet = work.neighbours() if "neighbours" in plan.metrics else None
    return Report(results, work.settings() | {"seconds": round(time.perf_counter() - start, 1)}, sheet, scenes)


def image_side(model: TextToImage | Autoencoder) -> int:
    """Return the side in pixels of the images that a model generates, or an autoencoder was trained on."""
    return model.size(Request())[0] if isinstance(model, TextToImage) else model.config.sample_size


class _Evaluation:
    """Readers of this process' part of the images, and the results of all parts."""

    def __init__(
        self,
        model: TextToImage | Autoencoder,
        source: Source,
        plan: Plan,
        share: ProcessShare,
        features: Features | None,
    ) -> None:
        self.source, self.plan, self.share, self.size = source, plan, share, image_side(model)
        self.pipe = model if isinstance(model, TextToImage) else None
        autoencoder = model.pipeline.autoencoder if isinstance(model, TextToImage) else model
        self.device = next(autoencoder.parameters(), torch.empty(0)).device
        self.features = None if features is None else features.to(self.device)
        self.reference: FeatureSet | None = None  # the data's, if the metrics need features
        self.request = _check_request(self.pipe, source, plan) if plan.needs_samples else None
        self.copies = self.scenes = None
        if plan.wants(RECONSTRUCTED):
            self.copies = Reconstructions(plan, autoencoder, self.features, self.device)
        if "scenes" in plan.metrics:
            self.scenes = SceneJudges(scenes_of(source), plan.samples, share, self.device)
        self.pixels = Collector(plan.references, as_vectors)
        self.shown = Collector[np.ndarray](SHOWN, list)
        self.reused = False  # whether the reference comes from the plan's file

    def read_data(self) -> None:
        """Read the data once for everything that is measured on it."""
        real = None if self.scenes is None else self.scenes.real
        pixels = self.pixels if "neighbours" in self.plan.metrics else None
        readers: list[Reader] = [reader for reader in (pixels, self.copies, real) if reader is not None]
        source, size, plan, share = self.source, self.size, self.plan, self.share
        if self.features is None:
            read_through(source, size, readers, share, plan.batch_size)
            return
        self.reference, self.reused = read_reference(
            source, size, plan.references, self.features, plan.statistics, readers, share, plan.batch_size
        )

    def measure_reconstructions(self) -> dict[str, float]:
        """Return how close the autoencoder's reconstructions are to the images."""
        if self.copies is None:
            return {}
        results = self.copies.results(self.share)
        if self.copies.features is not None and self.reference is not None:
            copies = FeatureSet(self.copies.features.stacked(self.share))
            results["rfid"] = distances["fid"](copies, self.reference)["fid"]
        return results

    def measure_samples(self) -> dict[str, float]:
        """Generate samples; return their distances to the data, and how well they match their captions."""
        if self.pipe is None or self.request is None:
            return {}
        metrics, count = self.plan.metrics, self.plan.samples
        features = None
        if self.features is not None and self.plan.wants(DISTANCES):
            features = FeatureReader(count, self.features)
        captions = None
        if self.plan.clip is not None:
            prompts = [str(self.request.prompts[number]) for number in self.share.of(count)]
            captions = caption_scorer(clip_score(self.plan.clip, self.device), prompts)
        judge = None if self.scenes is None else self.scenes.samples
        readers: list[Reader] = [each for each in (features, captions, judge, self.shown) if each is not None]
        generate_through(self.pipe, self.request, readers, self.share)
        results: dict[str, float] = {}
        if features is not None and self.reference is not None:
            ours = FeatureSet(features.stacked(self.share))
            for name in DISTANCES:
                results |= distances[name](ours, self.reference) if name in metrics else {}
        return results if captions is None else results | {"clip": float(np.mean(captions.gathered(self.share)))}

    def neighbours(self) -> Image.Image:
        """Return the first samples, each next to its nearest images of the data by pixels and by features."""
        assert self.features is not None
        assert self.reference is not None
        shown = np.stack(self.shown.gathered(self.share))
        by_pixels = nearest(as_vectors(shown), torch.stack(self.pixels.gathered(self.share)), NEIGHBOURS)
        by_features = nearest(self.features(as_tensor(shown)).cpu(), self.reference.features, NEIGHBOURS)
        return neighbour_sheet(shown, lambda number: fit(self.source.image(number), self.size), by_pixels, by_features)

    def settings(self) -> dict[str, Any]:
        """Return how the results were measured."""
        facts: dict[str, Any] = {
            "metrics": list(self.plan.metrics),
            "samples": self.plan.samples,
            "size": self.size,
            "resizing": RESIZING,
            "batch_size": self.plan.batch_size,
            "processes": self.share.processes,
        }
        if self.features is not None and self.reference is not None:
            facts |= self._feature_settings(self.features, self.reference)
        if self.request is not None:
            facts["sampling"] = {name: getattr(self.request, name) for name in SAMPLING}
        return facts | ({} if self.plan.clip is None else {"clip": self.plan.clip})

    def _feature_settings(self, features: Features, reference: FeatureSet) -> dict[str, Any]:
        dimensions = reference.features.shape[1]
        return {
            "images": len(reference),
            "statistics": self.plan.statistics and str(self.plan.statistics),
            "statistics_reused": self.reused,
            "features": features.name,
            "features_dimensions": dimensions,
            "features_resizing": features.resizing,
            "features_weights": features.digest(),
            "comparable_with_published_fid": features.comparable,
            "notes": _notes(self.plan, features, dimensions),
        }


def _check_request(pipe: TextToImage | None, source: Source, plan: Plan) -> Request:
    if pipe is None:
        raise UserError(f"an autoencoder alone generates no samples: measure {', '.join(RECONSTRUCTED)}")
    request = request_of(pipe, source, plan)
    compared = [name for name in ("clip", "scenes") if name in plan.metrics]
    if compared and not request.prompts:
        raise UserError(
            f"{' and '.join(compared)} compare images with their captions, but this model is not conditioned on text"
        )
    return request


def _notes(plan: Plan, features: Features, dimensions: int) -> list[str]:
    """Return limits of the numbers that a reader must know."""
    notes = []
    if not features.comparable:
        notes.append(f"features {features.name}: compare only with numbers of the same features, not published ones")
    fewest = min(plan.samples, plan.references)
    if plan.wants(("fid", "rfid")) and fewest <= dimensions:
        notes.append(
            f"{fewest} images in {dimensions} dimensions have a singular covariance: FID is too high, compare it only "
            "with FID of as many images; KID is unbiased"
        )
    return notes
