"""A model's samples and reconstructions against the pictures of a data set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.data.pictures import fit, to_bytes, to_tensor
from ldm.data.progress import track
from ldm.data.sources import Source
from ldm.diffusion.samplers import sampler_eta
from ldm.errors import UserError
from ldm.evaluation.distances import distances
from ldm.evaluation.features import Features, make_features
from ldm.evaluation.fidelity import metrics as fidelity_metrics
from ldm.evaluation.neighbours import as_vectors, nearest, neighbour_sheet
from ldm.pipeline import Request, TextToImage
from ldm.processes import ProcessShare

Item = TypeVar("Item")

SAMPLED = ("fid", "kid", "precision")  # of samples against the data
RECONSTRUCTED = ("psnr", "ssim", "lpips")  # of each reconstruction against its picture
METRICS = (*SAMPLED, "clip", "rfid", *RECONSTRUCTED, "neighbours")
NEIGHBOURS, SHOWN = 3, 8  # of each kind beside a sample, and samples shown


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure, on how many pictures, and how the samples are drawn; UserError for what means nothing."""

    metrics: tuple[str, ...] = ("fid", "kid", "precision", "rfid", "psnr", "ssim")
    samples: int = 1000
    features: str = "inception"
    clip: str | None = None  # a CLIP of transformers for the score of text and picture
    guidance_scale: float = 3.0
    num_inference_steps: int = 30
    sampler: str = "ddim"
    eta: float | None = None
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown or not self.metrics:
            raise UserError(f"no measure {', '.join(map(repr, unknown)) or 'given'}: there are {', '.join(METRICS)}")
        if self.samples < 2 or self.batch_size < 1:
            raise UserError(f"{self.samples} samples in batches of {self.batch_size}: give at least 2, and at least 1")
        if "clip" in self.metrics and self.clip is None:
            raise UserError("the CLIP score needs a CLIP model: --clip takes a folder or a Hub id")
        if "clip" not in self.metrics and self.clip is not None:
            raise UserError(f"--clip {self.clip} is for the CLIP score alone: add clip to --metrics")

    def wants(self, names: Sequence[str]) -> bool:
        """Whether any of these is to be measured."""
        return any(name in self.metrics for name in names)

    def make_features(self) -> Features | None:
        """The features that the measures need; None where they need none."""
        return make_features(self.features) if self.wants((*SAMPLED, "rfid", "neighbours")) else None


@dataclass(frozen=True)
class Report:
    """The numbers, how they came about, and a picture of samples beside their nearest pictures of the data."""

    results: dict[str, float]
    settings: dict[str, Any]
    neighbours: Image.Image | None = None

    def as_dict(self) -> dict[str, Any]:
        """Everything but the picture."""
        return {"results": self.results, "settings": self.settings}


def evaluate(
    pipe: TextToImage, source: Source, plan: Plan, share: ProcessShare | None = None, features: Features | None = None
) -> Report:
    """Measure what the plan names against the first `plan.samples` pictures of a source.

    Samples are drawn from those pictures' own first captions, or their classes, with the seeds `plan.seed`,
    `plan.seed + 1`, ...; every process of `share` draws and encodes its part, and all of them get the whole report.
    `features` are those of the plan if they have been made already.
    """
    if len(source) < plan.samples:
        raise UserError(f"{plan.samples} samples asked for, but the data has {len(source)} pictures")
    began = time.perf_counter()
    work = _Work(pipe, source, plan, share or ProcessShare(), features or plan.make_features())
    results: dict[str, float] = {}
    if plan.wants((*RECONSTRUCTED, "rfid")):
        results |= work.of_reconstructions()
    sheet = None
    if plan.wants((*SAMPLED, "clip", "neighbours")):
        samples = work.samples()
        results |= work.of_samples(samples)
        sheet = work.neighbours(samples) if "neighbours" in plan.metrics else None
    settings = asdict(plan) | {
        "eta": sampler_eta(plan.sampler) if plan.eta is None else plan.eta,
        "comparable_with_published_fid": work.features is not None and work.features.comparable,
        "seconds": round(time.perf_counter() - began, 1),
    }
    return Report(results, settings, sheet)


class _Work:
    """This process' part of the pictures, and the gathering of all parts."""

    def __init__(
        self, pipe: TextToImage, source: Source, plan: Plan, share: ProcessShare, features: Features | None
    ) -> None:
        self.pipe, self.source, self.plan, self.share = pipe, source, plan, share
        self.numbers = list(share.of(plan.samples))
        self.request = Request(
            **asked_of(pipe, source, plan),
            num_inference_steps=plan.num_inference_steps,
            sampler=plan.sampler,
            eta=plan.eta,
            seed=plan.seed,
            batch_size=plan.batch_size,
        )
        width, self.size = pipe.size(self.request)
        if width != self.size:
            raise UserError(f"pictures of {width}x{self.size} cannot be compared: the data is cut into squares")
        self.features = features.to(pipe.device) if features is not None else None
        self.pictures = np.stack([fit(source.picture(number), self.size) for number in self.numbers])

    @cached_property
    def reference(self) -> Tensor:
        """Features of all pictures of the data, (N, D)."""
        return self._features_of(self.pictures)

    def samples(self) -> np.ndarray:
        """This process' samples, bytes (n, H, W, 3)."""
        drawn = self.pipe.draw(self.request, numbers=self.numbers)
        return np.stack([np.asarray(image) for image in self._tracked(drawn, "drawing pictures", len(self.numbers))])

    def of_samples(self, samples: np.ndarray) -> dict[str, float]:
        """Distances between the samples and the data, and how well samples fit their captions."""
        results: dict[str, float] = {}
        if self.plan.wants(SAMPLED):
            features = self._features_of(samples)
            for name in SAMPLED:
                if name in self.plan.metrics:
                    results |= distances[name](features, self.reference)
        if self.plan.clip is not None and "clip" in self.plan.metrics:
            score = clip_score(self.plan.clip)
            prompts = [self.source.captions(number)[0] for number in self.numbers]
            found = [score(samples[at], prompts[at]) for at in self._batches()]
            results["clip"] = float(np.mean(self.share.gather(np.concatenate(found).tolist())))
        return results

    def of_reconstructions(self) -> dict[str, float]:
        """How near the autoencoder's reconstructions from the posterior's mode come to the pictures."""
        names = [name for name in RECONSTRUCTED if name in self.plan.metrics]
        measures, copies = fidelity_metrics(names), []
        found: dict[str, list[float]] = {name: [] for name in names}
        for at in self._tracked(self._batches(), "reconstructing batches", len(self._batches())):
            copies.append(self._reconstruct(self.pictures[at]))
            ours, theirs = _as_tensor(copies[-1]), _as_tensor(self.pictures[at])
            for name, measure in measures.items():
                found[name] += measure(ours, theirs).tolist()
        results: dict[str, float] = {}
        for name, values in found.items():
            whole = np.array(self.share.gather(values))
            results |= {name: float(whole.mean()), f"{name}_standard_error": float(whole.std() / len(whole) ** 0.5)}
        if "rfid" in self.plan.metrics:
            results["rfid"] = distances["fid"](self._features_of(np.concatenate(copies)), self.reference)["fid"]
        return results

    def neighbours(self, samples: np.ndarray) -> Image.Image:
        """The first samples beside the pictures of the data that are nearest in pixels, then in features."""
        data = np.stack(self.share.gather(list(self.pictures)))
        shown = np.stack(self.share.gather(list(samples)))[:SHOWN]
        by_pixels = nearest(as_vectors(shown), as_vectors(data), NEIGHBOURS)
        assert self.features is not None
        by_features = nearest(self.features(_as_tensor(shown).to(self.pipe.device)).cpu(), self.reference, NEIGHBOURS)
        return neighbour_sheet(shown, data, by_pixels, by_features)

    @torch.inference_mode()
    def _reconstruct(self, pictures: np.ndarray) -> np.ndarray:
        autoencoder = self.pipe.parts.autoencoder
        return to_bytes(autoencoder.decode(autoencoder.encode(to_tensor(pictures).to(self.pipe.device)).mode()))

    def _features_of(self, pictures: np.ndarray) -> Tensor:
        """Features of all processes' pictures in the order of their numbers, (N, D), of this one's (n, H, W, 3)."""
        assert self.features is not None
        found = [self.features(_as_tensor(pictures[at]).to(self.pipe.device)).cpu() for at in self._batches()]
        return torch.stack(self.share.gather(list(torch.cat(found))))

    def _batches(self) -> list[slice]:
        size = self.plan.batch_size
        return [slice(first, first + size) for first in range(0, len(self.numbers), size)]

    def _tracked(self, items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
        return track(items, description, total) if self.share.is_first else iter(items)


def asked_of(pipe: TextToImage, source: Source, plan: Plan) -> dict[str, Any]:
    """What a request asks of a model, for a picture like each of the data: its caption, its class, or none of both."""
    parts, numbers = pipe.parts, range(plan.samples)
    if parts.texts:
        return {"prompts": tuple(source.captions(n)[0] for n in numbers), "guidance_scale": plan.guidance_scale}
    if parts.num_classes is None:
        return {"num_images": plan.samples}
    names = source.class_names if parts.class_names else ()
    classes = tuple(names[source.label(n)] if names else source.label(n) for n in numbers)
    return {"classes": classes, "guidance_scale": None if parts.empty_class is None else plan.guidance_scale}


def clip_score(model: str) -> Callable[[np.ndarray, list[str]], np.ndarray]:
    """100 times the cosine of picture and caption under a CLIP, at least 0 (Hessel et al. 2021 without their 2.5)."""
    from transformers import AutoProcessor, CLIPModel

    try:
        network, processor = CLIPModel.from_pretrained(model).eval(), AutoProcessor.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise UserError(f"no CLIP model {model!r}: {' '.join(str(error).split())}") from error

    @torch.inference_mode()
    def score(pictures: np.ndarray, captions: list[str]) -> np.ndarray:
        inputs = processor(text=captions, images=list(pictures), return_tensors="pt", padding=True, truncation=True)
        found = network(**inputs)
        return (100 * (found.image_embeds * found.text_embeds).sum(-1)).clamp(min=0).numpy()

    return score


def _as_tensor(pictures: np.ndarray) -> Tensor:
    """Bytes (n, H, W, 3) to bytes (n, 3, H, W)."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)
