"""Guidance by gradients: by a classifier of noisy latents, and by CLIP."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.checkpoint.classifiers import TrainedClassifier
from ldm.checkpoint.clips import load_clip
from ldm.checkpoint.pipeline import Pipeline
from ldm.conditioning.classes import class_number
from ldm.conditioning.text.composition import Composed
from ldm.conditioning.text.prompts import without_syntax
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.gradient_guidance import by_classifier, by_image
from ldm.diffusion.level import Level
from ldm.errors import UserError
from ldm.generation.crops import Crops
from ldm.generation.request import Request, Subject
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.clip import Clip


@dataclass(frozen=True, kw_only=True)
class ClassifierGuidance:
    """Guidance to the classes of a request by a classifier of noisy latents; see `by_classifier`.

    Raises:
        UserError: for a scale that is not finite.
    """

    classifier: TrainedClassifier = field(repr=False)
    scale: float = 1.0  # 1: Bayes' rule

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise UserError(f"classifier scale {self.scale} is not a finite number")

    @classmethod
    def from_pretrained(cls, path: str | Path, scale: float = 1.0) -> ClassifierGuidance:
        """Load a run of `ldm train-classifier`."""
        return cls(classifier=TrainedClassifier.from_pretrained(path), scale=scale)

    def numbers(self, pipeline: Pipeline, classes: Sequence[int | str]) -> tuple[int, ...]:
        """Return the numbers of classes given by number or name.

        Raises:
            UserError: for unknown classes, and for a pipeline with another autoencoder or noise schedule.
        """
        self.classifier.check(pipeline)
        count, names = self.classifier.network.config.num_classes, self.classifier.class_names
        return tuple(class_number(each, count, names, "the classifier") for each in classes)

    def guide(self, denoiser: Denoiser, classes: Sequence[int], device: torch.device) -> Denoiser:
        """Guide a denoiser to the class of each image of a batch."""
        network, labels = self.classifier.network.to(device).requires_grad_(False), torch.tensor(classes, device=device)

        def log_probability(x: Tensor, level: Level) -> Tensor:
            return network.log_probability(x, level.t, labels)

        return by_classifier(denoiser, log_probability, self.scale)


@dataclass(frozen=True, kw_only=True)
class ClipGuidance:
    """Guidance by a CLIP (Nichol et al. 2021, section 2.3), applied to crops of the predicted image.

    The score gets the gradient of `scale` times the mean cosine similarity of `crops` crops and the text, through the
    autoencoder's decoder and the U-Net.

    Raises:
        UserError: for invalid values.
    """

    model: Clip = field(repr=False)
    scale: float = 100.0
    crops: int = 8
    prompt: str | None = None  # text for CLIP; None: the prompt of the image

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise UserError(f"CLIP scale {self.scale} is not a finite number")
        if self.crops < 1:
            raise UserError(f"crops is {self.crops}: CLIP guidance needs at least 1")

    @classmethod
    def from_pretrained(
        cls, model: str | Path, scale: float = 100.0, crops: int = 8, prompt: str | None = None
    ) -> ClipGuidance:
        """Load a folder of transformers or open_clip, a Hub id, or `open_clip:ARCHITECTURE:WEIGHTS`."""
        return cls(model=load_clip(model), scale=scale, crops=crops, prompt=prompt)

    def guide(
        self,
        denoiser: Denoiser,
        subjects: Sequence[Subject],
        seeds: Sequence[int],
        autoencoder: Autoencoder,
        device: torch.device,
    ) -> Denoiser:
        """Guide a denoiser to the text of each image of a batch, with crops from each image's seed."""
        self.model.to(device)
        targets, crops = self._targets(subjects), Crops(seeds, self.crops, self.model.side)

        def similarity(x0: Tensor) -> Tensor:
            images = crops(autoencoder.decode(x0).float())  # (B, N, 3, side, side)
            embeddings = self.model.images(images.flatten(0, 1)).unflatten(0, images.shape[:2])  # (B, N, D)
            return (embeddings * targets[:, None]).sum(-1).mean(1)

        return by_image(denoiser, similarity, self.scale)

    def _targets(self, subjects: Sequence[Subject]) -> Tensor:
        """Embed each image's text, or the weighted sum of its texts: (B, D)."""
        texts = [self.prompt if self.prompt is not None else subject for subject in subjects]
        parts = [text.parts if isinstance(text, Composed) else ((str(text), 1.0),) for text in texts]
        embeddings = []
        for each in parts:
            weights = self.model.mean.new_tensor([weight for _, weight in each])
            embeddings.append(weights @ self.model.texts([text for text, _ in each]))
        return F.normalize(torch.stack(embeddings), dim=-1)


def guide_by_gradients(
    denoiser: Denoiser, request: Request, pipeline: Pipeline, subjects: Sequence[Subject], seeds: Sequence[int]
) -> Denoiser:
    """Add the guidance of a request by a classifier and by CLIP to the denoiser of a batch."""
    if request.classifier is not None:
        classes = [subject if isinstance(subject, int) else int(request.classes[0]) for subject in subjects]
        denoiser = request.classifier.guide(denoiser, classes, pipeline.device)
    if request.clip is not None:
        texts = [without_syntax(subject, request) for subject in subjects]
        denoiser = request.clip.guide(denoiser, texts, seeds, pipeline.autoencoder, pipeline.device)
    return denoiser


def resolve_guides(request: Request, pipeline: Pipeline) -> Request:
    """Resolve a request with guidance by gradients.

    Where the model has no classes, the request's classes are the classifier's alone.

    Raises:
        UserError: for guidance that does not fit the model.
    """
    classifier = request.classifier
    own = classifier is not None and not any(each.uses_labels for each in pipeline.conditionings.values())
    resolved = pipeline.resolve(replace(request, classes=()) if own else request)
    if classifier is not None:
        if not request.classes:
            raise UserError("classifier guidance needs a class: give one (--class)")
        if request.prompts and len(request.classes) > 1:
            raise UserError(f"{len(request.classes)} classes with prompts: classifier guidance takes one class")
        classes = classifier.numbers(pipeline, request.classes if own else resolved.classes)
        resolved = replace(resolved, classes=classes)
    if request.clip is not None and request.clip.prompt is None and not request.prompts:
        raise UserError("CLIP guidance needs a text, but this model takes no prompts: pass --clip-prompt TEXT")
    return resolved
