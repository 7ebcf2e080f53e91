"""A classifier on noisy latents, for classifier guidance (Dhariwal and Nichol 2021, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.checkpoint.classifiers import TrainedClassifier, find_classifier
from ldm.config.root import Config
from ldm.config.training import ClassifierStageConfig
from ldm.data.cached import CachedData
from ldm.data.loader import Batch
from ldm.data.sources import Source
from ldm.diffusion.schedule import make_schedule
from ldm.errors import UserError
from ldm.training.cache.fingerprints import Encoders
from ldm.training.ema import EMA
from ldm.training.latents import sampled
from ldm.training.optim.groups import freeze
from ldm.training.runs.run import Run
from ldm.training.stages.initialize import initial_classifier
from ldm.training.stages.latent_stage import LatentStage, cache_options
from ldm.training.stages.stage import StartingPoint, StepReport, ValidationLoss
from ldm.training.transfer import moved

BANDS = 4  # quarters of the timesteps, with an accuracy each
KEPT = 0.9  # decay of the counts of a band from step to step


class ClassifierStage(LatentStage):
    """Train a classifier on latents at random noise levels, with the cross-entropy of the class."""

    name = "classifier"
    config: ClassifierStageConfig

    def __init__(
        self, trained: TrainedClassifier, config: Config, accelerator: Accelerator, cache: CachedData | None
    ) -> None:
        super().__init__(config, accelerator, **cache_options(cache))
        self.classifier, self.cache = trained, cache
        self.schedule, self.timesteps = make_schedule(config.diffusion.schedule), config.diffusion.schedule
        self.autoencoder = trained.autoencoder.to(accelerator.device).eval().requires_grad_(False)
        self.num_classes = trained.network.config.num_classes
        # Correct predictions and all, in each band; they start as if one class had been guessed.
        self._right = torch.full((BANDS,), 1 / self.num_classes, device=accelerator.device)
        self._all = torch.ones(BANDS, device=accelerator.device)
        network = self.place(trained.network.train())
        freeze(network, self.config.freeze)
        self.network = self.prepare(
            "classifier", network, self.config.learning_rate, self.config.learning_rates, averaged=True
        )

    @classmethod
    def check(cls, config: Config, run: Run, start: StartingPoint) -> None:
        """Check configuration and files before time is spent on the data."""
        config.need_classifier()
        if start.init is not None:
            find_classifier(start.init)
        super().check(config, run, start)

    @classmethod
    def build(
        cls, config: Config, source: Source, accelerator: Accelerator, run: Run, start: StartingPoint
    ) -> ClassifierStage:
        """Build a new classifier on an autoencoder's latents, or load the one of `start` or of the run."""
        trained = initial_classifier(config, source, run, start.vae, start.init)
        cache = cls.open_cache(config, Encoders(trained.autoencoder), source, accelerator, run)
        return cls(trained, config, accelerator, cache)

    def train_step(self, batches: Sequence[Batch], step: int, schedule_step: int | None = None) -> StepReport:
        """Classify latents with noise of random levels."""
        found = []
        self._right, self._all = KEPT * self._right, KEPT * self._all
        for batch in self.network.micro_batches(batches):
            losses, right, t = self._answers(self.network.wrapped, batch, self.cache)
            loss = losses.mean()
            self.network.backward(loss / len(batches))
            found.append(loss.detach())
            self._count(right, t)
        norm = self.network.step(self.config.gradient_clip)
        self.update_averages(self.network.network, step)
        return StepReport({"loss": torch.stack(found).mean(), "gradient_norm": norm} | self.accuracies(), {})

    def accuracies(self) -> dict[str, Tensor]:
        """Return the accuracy in each quarter of the timesteps, over about the last ten steps.

        `accuracy_t0` is for the least noise.
        """
        starts = range(0, self.timesteps.num_train_timesteps, self._band_width)
        return {f"accuracy_t{start}": share for start, share in zip(starts, self._right / self._all, strict=True)}

    @torch.no_grad()
    def validate(self, batch: Batch, cached: bool = True) -> ValidationLoss:
        """Return the losses of the EMA weights."""
        losses, _, t = self._answers(self.emas[0].network, batch, self.cache if cached else None)
        return ValidationLoss(losses, t / self.timesteps.num_train_timesteps)

    def save(self, folder: Path) -> None:
        """Write classifier, autoencoder and schedule to `folder`, with other averages to `folder/ema-DECAY`."""
        for ema, place in zip(self.emas, self.places(folder), strict=True):
            self._with(ema).save_pretrained(place)

    def _with(self, ema: EMA) -> TrainedClassifier:
        trained = self.classifier
        return TrainedClassifier(ema.network, trained.autoencoder, trained.diffusion, trained.class_names)

    def _answers(self, network: nn.Module, batch: Batch, cache: CachedData | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the losses (B,), which predictions are correct (B,), and the timesteps (B,)."""
        latents = sampled(batch, self.autoencoder, cache, self.random, self.accelerator.device)
        level = moved(self.schedule.sample(self.random.uniform("level", batch.step, batch.slots)), latents.device)
        noise = moved(self.random.normal("noise", batch.step, batch.slots, latents.shape[1:]), latents.device)
        logits = network(level.noisy(latents, noise), level.t).float()
        classes = moved(self._classes(batch), latents.device)
        return F.cross_entropy(logits, classes, reduction="none"), logits.argmax(1) == classes, level.t

    def _classes(self, batch: Batch) -> Tensor:
        """Return the classes (B,).

        Raises:
            UserError: for one that the classifier does not have.
        """
        for index, label in zip(batch.indices, batch.labels, strict=True):
            if label >= self.num_classes:
                known = f"classifier.num_classes is {self.num_classes}"
                raise UserError(f"image {index} of the data has class {label}: {known}")
        return torch.tensor(list(batch.labels))

    def _count(self, right: Tensor, t: Tensor) -> None:
        bands = (t / self._band_width).long().clamp(max=BANDS - 1)
        self._right = self._right.index_add(0, bands, right.float())
        self._all = self._all.index_add(0, bands, torch.ones_like(right, dtype=torch.float32))

    @property
    def _band_width(self) -> int:
        return -(-self.timesteps.num_train_timesteps // BANDS)
