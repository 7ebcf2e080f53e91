"""What can lead an image besides its prompt: a classifier of noisy latents, and CLIP."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.checkpoint.classifiers import TrainedClassifier
from ldm.checkpoint.clips import load_clip
from ldm.checkpoint.parts import Parts
from ldm.conditioning.text.composition import Composed
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.gradient_guidance import by_classifier, by_image
from ldm.diffusion.level import Level
from ldm.errors import UserError
from ldm.generation.class_names import class_number
from ldm.generation.crops import Crops
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.clip import Clip


@dataclass(frozen=True, kw_only=True)
class ClassifierGuidance:
    """StepRandom what a classifier of noisy latents takes for the classes of a request; see `by_classifier`.

    Raises UserError for a scale that means nothing.
    """

    classifier: TrainedClassifier = field(repr=False)
    scale: float = 1.0  # 1: Bayes' rule

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise UserError(f"classifier scale {self.scale} is not a number to multiply by")

    @classmethod
    def from_pretrained(cls, path: str | Path, scale: float = 1.0) -> ClassifierGuidance:
        """By a run of `ldm train-classifier`."""
        return cls(classifier=TrainedClassifier.from_pretrained(path), scale=scale)

    def numbers(self, parts: Parts, classes: Sequence[int | str]) -> tuple[int, ...]:
        """The numbers of classes given by number or name; UserError for unknown ones.

        UserError as well for a pipeline of other latents, noise or classes.
        """
        self.classifier.check(parts)
        count, names = self.classifier.network.config.num_classes, self.classifier.class_names
        return tuple(class_number(each, count, names, "the classifier") for each in classes)

    def around(self, denoiser: Denoiser, classes: Sequence[int], device: torch.device) -> Denoiser:
        """The denoiser led to the classes of the images of a batch."""
        network, wanted = self.classifier.network.to(device).requires_grad_(False), torch.tensor(classes, device=device)

        def log_probability(x: Tensor, level: Level) -> Tensor:
            return network.log_probability(x, level.t, wanted)

        return by_classifier(denoiser, log_probability, self.scale)


@dataclass(frozen=True, kw_only=True)
class ClipGuidance:
    """StepRandom what a CLIP finds like a text (Nichol et al. 2021, section 2.3, with crops of the image that is seen).

    What is added to the score is the gradient of `scale` times the mean cosine of `crops` parts of the image and the
    text, through the autoencoder's decoder and the U-Net. Raises UserError for values that mean nothing.
    """

    model: Clip = field(repr=False)
    scale: float = 100.0
    crops: int = 8
    prompt: str | None = None  # what CLIP is told; None: what the model is told

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise UserError(f"CLIP scale {self.scale} is not a number to multiply by")
        if self.crops < 1:
            raise UserError(f"{self.crops} crops: CLIP must be shown at least one")

    @classmethod
    def from_pretrained(
        cls, model: str | Path, scale: float = 100.0, crops: int = 8, prompt: str | None = None
    ) -> ClipGuidance:
        """By a folder of transformers or open_clip, a Hub id, or `open_clip:ARCHITECTURE:WEIGHTS`."""
        return cls(model=load_clip(model), scale=scale, crops=crops, prompt=prompt)

    def around(
        self,
        denoiser: Denoiser,
        subjects: Sequence[str | int | Composed | None],
        seeds: Sequence[int],
        autoencoder: Autoencoder,
        device: torch.device,
    ) -> Denoiser:
        """The denoiser led to the texts of a batch, with crops drawn from each image's seed."""
        self.model.to(device)
        targets, crops = self._targets(subjects), Crops(seeds, self.crops, self.model.side)

        def likeness(x0: Tensor) -> Tensor:
            shown = crops(autoencoder.decode(x0).float())  # (B, N, 3, side, side)
            embeddings = self.model.images(shown.flatten(0, 1)).unflatten(0, shown.shape[:2])  # (B, N, D)
            return (embeddings * targets[:, None]).sum(-1).mean(1)

        return by_image(denoiser, likeness, self.scale)

    def _targets(self, subjects: Sequence[str | int | Composed | None]) -> Tensor:
        """An embedding of each image's text, or of its texts by their weights, (B, D)."""
        told = [self.prompt if self.prompt is not None else subject for subject in subjects]
        parts = [text.parts if isinstance(text, Composed) else ((str(text), 1.0),) for text in told]
        found = []
        for each in parts:
            weights = self.model.mean.new_tensor([weight for _, weight in each])
            found.append(weights @ self.model.texts([text for text, _ in each]))
        return F.normalize(torch.stack(found), dim=-1)
