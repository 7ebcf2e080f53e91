"""A model's samples and reconstructions against the images of a data set."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from PIL import Image

from ldm.data.images import RESIZING, fit
from ldm.data.sources import Source
from ldm.diffusion.samplers import sampler_eta
from ldm.errors import UserError
from ldm.evaluation.distances import FeatureSet, distances
from ldm.evaluation.features import Features
from ldm.evaluation.neighbours import as_vectors, nearest, neighbour_sheet
from ldm.evaluation.plan import DISTANCES, RECONSTRUCTED, Plan, Report, Sampling
from ldm.evaluation.reading import FeatureReader, PixelReader, Reader, as_tensor, read_through
from ldm.evaluation.reconstructions import Reconstructions
from ldm.evaluation.reference_statistics import read_reference
from ldm.evaluation.samples import CaptionScores, FirstSamples, clip_score, draw_through, request_of
from ldm.evaluation.scenes.scores import SceneJudges, scenes_of
from ldm.generation import Request, TextToImage
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.processes import ProcessShare

NEIGHBOURS, SHOWN = 3, 8  # of each kind beside a sample, and samples shown


def evaluate(
    model: TextToImage | Autoencoder,
    source: Source,
    plan: Plan,
    share: ProcessShare | None = None,
    features: Features | None = None,
) -> Report:
    """Measure what the plan names against the first images of a source.

    An autoencoder is enough where no samples are drawn. Every process of `share` draws and encodes its part, and all of
    them get the whole report. `features` are those of the plan if they have been made already.
    """
    needed = max(plan.samples, plan.references)
    if len(source) < needed:
        raise UserError(f"{needed} images asked for, but the data has {len(source)}")
    began = time.perf_counter()
    work = _Work(model, source, plan, share or ProcessShare(), features or plan.make_features())
    work.read()
    results = work.of_reconstructions() | work.of_samples()
    scenes = work.scenes.scores(work.share) if work.scenes is not None else None
    results |= {} if scenes is None else scenes.results()
    sheet = work.neighbours() if "neighbours" in plan.metrics else None
    return Report(results, work.settings() | {"seconds": round(time.perf_counter() - began, 1)}, sheet, scenes)


def image_side(model: TextToImage | Autoencoder) -> int:
    """Side in pixels of the images that a model draws, or that an autoencoder was trained on."""
    return model.size(Request())[0] if isinstance(model, TextToImage) else model.config.sample_size


class _Work:
    """This process' part of the images, and the gathering of all parts."""

    def __init__(
        self,
        model: TextToImage | Autoencoder,
        source: Source,
        plan: Plan,
        share: ProcessShare,
        features: Features | None,
    ) -> None:
        self.source, self.plan, self.share = source, plan, share
        self.pipe = model if isinstance(model, TextToImage) else None
        autoencoder = model.parts.autoencoder if isinstance(model, TextToImage) else model
        self.device = next(autoencoder.parameters()).device
        self.features = None if features is None else features.to(self.device)
        self.request = self._request()
        self.size = image_side(model)
        self.copies = None
        if plan.wants(RECONSTRUCTED):
            self.copies = Reconstructions(plan, autoencoder, self.features, self.device)
        self.vectors = PixelReader(plan.references) if "neighbours" in plan.metrics else None
        self.scenes = None
        if "scenes" in plan.metrics:
            self.scenes = SceneJudges(scenes_of(source), plan.samples, self.share, self.device)
        self.shown = FirstSamples(SHOWN)
        self.reference: FeatureSet | None = None
        self.reused = False  # whether that comes from the file of statistics

    def _request(self) -> Request | None:
        if not self.plan.draws:
            return None
        if self.pipe is None:
            raise UserError(f"an autoencoder alone draws nothing: measure {', '.join(RECONSTRUCTED)}")
        request = request_of(self.pipe, self.source, self.plan)
        compared = [name for name in ("clip", "scenes") if name in self.plan.metrics]
        if compared and not request.prompts:
            raise UserError(
                f"{' and '.join(compared)} compare images with their captions: this model draws none of captions"
            )
        return request

    def read(self) -> None:
        """Go through the data, once for all that is measured on it."""
        plan, source, size, share = self.plan, self.source, self.size, self.share
        real = None if self.scenes is None else self.scenes.real
        others: list[Reader] = [each for each in (self.vectors, self.copies, real) if each is not None]
        if self.features is None:
            read_through(source, size, others, share, plan.batch_size)
            return
        self.reference, self.reused = read_reference(
            source, size, plan.references, self.features, plan.statistics, others, share, plan.batch_size
        )

    def of_reconstructions(self) -> dict[str, float]:
        """How near the autoencoder's reconstructions come to the images."""
        if self.copies is None:
            return {}
        results = self.copies.results(self.share)
        if "rfid" in self.plan.metrics:
            assert self.reference is not None
            copies = FeatureSet(self.copies.features(self.share))
            results["rfid"] = distances["fid"](copies, self.reference)["fid"]
        return results

    def of_samples(self) -> dict[str, float]:
        """Distances between the samples and the data, and how well samples fit their captions."""
        if self.pipe is None or self.request is None:
            return {}
        features = None
        if self.plan.wants(DISTANCES):
            assert self.features is not None
            features = FeatureReader(self.plan.samples, self.features)
        captions = self._caption_scores() if "clip" in self.plan.metrics else None
        judge = None if self.scenes is None else self.scenes.samples
        readers: list[Reader] = [each for each in (features, captions, judge, self.shown) if each is not None]
        draw_through(self.pipe, self.request, readers, self.share)
        results: dict[str, float] = {}
        if features is not None:
            assert self.reference is not None
            ours = FeatureSet(features.gathered(self.share))
            for name in DISTANCES:
                results |= distances[name](ours, self.reference) if name in self.plan.metrics else {}
        return results if captions is None else results | {"clip": captions.mean(self.share)}

    def neighbours(self) -> Image.Image:
        """The first samples beside the images of the data that are nearest in pixels, then in features."""
        assert self.vectors is not None
        assert self.features is not None
        assert self.reference is not None
        shown = self.shown.gathered(self.share)
        by_pixels = nearest(as_vectors(shown), self.vectors.gathered(self.share), NEIGHBOURS)
        by_features = nearest(self.features(as_tensor(shown)).cpu(), self.reference.features, NEIGHBOURS)
        return neighbour_sheet(shown, self._image, by_pixels, by_features)

    def settings(self) -> dict[str, Any]:
        """How the numbers came about."""
        facts: dict[str, Any] = {
            "metrics": list(self.plan.metrics),
            "samples": self.plan.samples,
            "size": self.size,
            "resizing": RESIZING,
            "batch_size": self.plan.batch_size,
            "processes": self.share.processes,
        }
        if self.features is not None and self.reference is not None:
            facts |= self._feature_facts(self.features, self.reference)
        if self.request is not None:
            facts["sampling"] = self._sampling(self.request)
        return facts if self.plan.clip is None else facts | {"clip": self.plan.clip}

    def _feature_facts(self, features: Features, reference: FeatureSet) -> dict[str, Any]:
        dimensions = reference.features.shape[1]
        file = self.plan.statistics
        return {
            "images": len(reference),
            "statistics": None if file is None else str(file),
            "statistics_reused": self.reused,
            "features": features.name,
            "features_dimensions": dimensions,
            "features_resizing": features.resizing,
            "features_weights": features.digest(),
            "comparable_with_published_fid": features.comparable,
            "notes": self._notes(features, dimensions),
        }

    def _notes(self, features: Features, dimensions: int) -> list[str]:
        """What a reader of the numbers must know."""
        notes = []
        if not features.comparable:
            notes.append(f"features {features.name}: compare with numbers of the same features only, none published")
        fewest = min(self.plan.samples, self.plan.references)
        if self.plan.wants(("fid", "rfid")) and fewest <= dimensions:
            notes.append(
                f"{fewest} images in {dimensions} dimensions have a singular covariance: FID comes out too high, "
                "compare it with that of as many images only; KID is unbiased"
            )
        return notes

    def _sampling(self, request: Request) -> dict[str, Any]:
        assert request.sampler is not None  # a resolved request has one
        eta = sampler_eta(request.sampler) if request.eta is None else request.eta
        sampling = replace(self.plan.sampling or Sampling(), guidance_scale=request.guidance_scale, eta=eta)
        return asdict(replace(sampling, num_inference_steps=request.steps, sampler=request.sampler))

    def _caption_scores(self) -> CaptionScores:
        assert self.plan.clip is not None
        assert self.request is not None
        captions = [str(self.request.prompts[number]) for number in self.share.of(self.plan.samples)]
        return CaptionScores(clip_score(self.plan.clip, self.device), captions)

    def _image(self, number: int) -> np.ndarray:
        return fit(self.source.image(number), self.size)
