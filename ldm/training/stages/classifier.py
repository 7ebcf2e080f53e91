"""A classifier on noisy latents, for classifier guidance (Dhariwal and Nichol 2021, section 4)."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.checkpoint.classifiers import TrainedClassifier
from ldm.config.root import Config
from ldm.config.training import ClassifierStageConfig
from ldm.data.cached import CachedData
from ldm.data.loader import Batch
from ldm.data.random import StepRandom
from ldm.diffusion.schedule import make_schedule
from ldm.errors import UserError
from ldm.training.ema import EMA
from ldm.training.latents import sampled
from ldm.training.optim.groups import freeze
from ldm.training.stages.stage import Stage
from ldm.training.transfer import moved

BANDS = 4  # quarters of the time steps, each with its own accuracy
KEPT = 0.9  # of what a band has counted, from one step to the next


class ClassifierStage(Stage):
    """Trains a classifier with the cross-entropy of the class at random levels of a schedule."""

    name = "classifier"
    config: ClassifierStageConfig

    def __init__(
        self, trained: TrainedClassifier, config: Config, accelerator: Accelerator, cache: CachedData | None
    ) -> None:
        self.config = config.training.classifier
        self.accelerator, self.random = accelerator, StepRandom(config.training.seed)
        self.trained, self.cache, self.needs_images = trained, cache, cache is None
        self.unreadable = None if cache is None else cache.unreadable
        self.schedule, self.timesteps = make_schedule(config.diffusion.schedule), config.diffusion.schedule
        self.autoencoder = trained.autoencoder.to(accelerator.device).eval().requires_grad_(False)
        self.num_classes = trained.network.config.num_classes
        # Of right answers and of all, in each band; they begin as if one answer had been guessed.
        self._right = torch.full((BANDS,), 1 / self.num_classes, device=accelerator.device)
        self._all = torch.ones(BANDS, device=accelerator.device)
        self.networks, self.optimizers = {}, {}
        network = self.place(trained.network.train())
        self.emas = self.averages_of(network)
        freeze(network, self.config.freeze)
        self.prepare("classifier", network, self.config.learning_rate, self.config.learning_rates, self.emas)

    def losses(self, batches: list[Batch], step: int) -> dict[str, Tensor]:
        """One step: noise the latents to random levels and tell their classes."""
        network, found = self.networks["classifier"], []
        self._right, self._all = KEPT * self._right, KEPT * self._all
        for batch in self.micro_batches(batches, network):
            loss, right, t = self._answers(network, batch)
            self.sharding.backward(network, loss / len(batches))
            found.append(loss.detach())
            self._count(right, t)
        norm = self.update("classifier")
        self.update_averages("classifier", step)
        return {"loss": torch.stack(found).mean(), "gradient_norm": norm} | self.accuracies()

    def accuracies(self) -> dict[str, Tensor]:
        """The share of right answers in each quarter of the time steps, over about the last ten steps.

        `accuracy_t0` is that of the least noise.
        """
        starts = range(0, self.timesteps.num_train_timesteps, self._band_width)
        return {f"accuracy_t{start}": share for start, share in zip(starts, self._right / self._all, strict=True)}

    @torch.no_grad()
    def validate(self, batch: Batch) -> Tensor:
        """The loss () of the averaged weights."""
        return self._answers(self.emas[0].network, batch)[0]

    def save(self, folder: Path) -> None:
        """Write classifier, autoencoder and schedule to `folder`, with other averages to `folder/ema-DECAY`."""
        for ema, place in zip(self.emas, self.places(folder), strict=True):
            self._with(ema).save_pretrained(place)

    def sample(self) -> None:
        """There is nothing to see."""

    def _with(self, ema: EMA) -> TrainedClassifier:
        trained = self.trained
        return TrainedClassifier(ema.network, trained.autoencoder, trained.diffusion, trained.class_names)

    def _answers(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The loss (), which answers are right (B,), and the time steps (B,)."""
        latents = sampled(batch, self.autoencoder, self.cache, self.random, self.accelerator.device)
        level = moved(self.schedule.sample(self.random.uniform("level", batch.step, batch.slots)), latents.device)
        noise = moved(self.random.normal("noise", batch.step, batch.slots, latents.shape[1:]), latents.device)
        logits = network(level.noisy(latents, noise), level.t).float()
        classes = moved(self._classes(batch), latents.device)
        return F.cross_entropy(logits, classes), logits.argmax(1) == classes, level.t

    def _classes(self, batch: Batch) -> Tensor:
        """The classes (B,); UserError for one that the classifier does not have."""
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
