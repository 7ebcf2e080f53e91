"""Stage two: the U-Net, and the parts that tell it of the images, on the latents of a trained autoencoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from ldm.checkpoint.diffusers.pipeline import Parts, find_model, save_pipeline
from ldm.config.root import Config
from ldm.config.training import UNetStageConfig
from ldm.data.cached import CachedData
from ldm.data.images import contact_sheet
from ldm.data.loader import Batch
from ldm.data.sources import Source
from ldm.diffusion.bound import Decoder
from ldm.diffusion.level import Level
from ldm.diffusion.loss import DenoisingLoss, VarianceLoss
from ldm.diffusion.schedule import make_schedule
from ldm.generation import TextToImage
from ldm.models.unet.fields import unet_to_fields
from ldm.training.cache.fingerprints import Encoders
from ldm.training.conditions import Condition, check_options, conditioned
from ldm.training.diagnostics.observations import mean_of, of_gradient, of_latents
from ldm.training.ema import EMA
from ldm.training.latents import sampled
from ldm.training.optim.groups import freeze
from ldm.training.runs.run import Run, with_text_source
from ldm.training.stages.build import condition_kinds
from ldm.training.stages.initialize import initial_parts
from ldm.training.stages.latent_stage import LatentStage, cache_options
from ldm.training.stages.stage import StartingPoint, StepReport
from ldm.training.transfer import moved


class UNetStage(LatentStage):
    """Trains a U-Net, and what is trained together with it, on the noise levels of a schedule."""

    name = "unet"
    config: UNetStageConfig

    def __init__(
        self,
        parts: Parts,
        config: Config,
        accelerator: Accelerator,
        conditions: Sequence[Condition],
        cache: CachedData | None,
    ) -> None:
        needs_images = any(condition.needs_images for condition in conditions)
        super().__init__(config, accelerator, **cache_options(cache, needs_images))
        self.parts, self.cache, self.conditions = parts, cache, conditions
        self.schedule = make_schedule(config.diffusion.schedule)
        self.loss = DenoisingLoss(config.diffusion)
        decoder: Decoder = "discretised" if config.autoencoder.is_pixel_space else "gaussian"  # pixels have 256 values
        self.variance_loss = VarianceLoss(config.diffusion, decoder) if config.diffusion.learned_variance else None
        self.autoencoder = parts.autoencoder.to(accelerator.device).eval().requires_grad_(False)
        network = self.place(conditioned(parts.unet, conditions))
        freeze(network, self.config.freeze)
        own = {name: rate for condition in conditions for name, rate in condition.rates.items()}
        rates = own | self.config.learning_rates
        self.network = self.prepare("unet", network, self.config.learning_rate, rates, averaged=True)

    @classmethod
    def complete(cls, config: Config, run: Path) -> Config:
        """Return the configuration with the sizes of its text encoder's source."""
        return with_text_source(config, run)

    @classmethod
    def check(cls, config: Config, run: Run, start: StartingPoint) -> None:
        """Raise UserError for what is invalid or missing, before time is spent on the data."""
        kinds = condition_kinds(config)
        check_options(config, kinds)
        for kind in kinds:
            kind.check(config, new=start.init is None and not run.steps())
        unet_to_fields(config.need_unet())  # raises for a U-Net that cannot be saved
        if start.init is not None:
            find_model(start.init)
        super().check(config, run, start)

    @classmethod
    def build(
        cls, config: Config, source: Source, accelerator: Accelerator, run: Run, start: StartingPoint
    ) -> UNetStage:
        """Build a new U-Net and what conditions it, or those of `start` or of the run."""
        kinds = condition_kinds(config)
        parts = initial_parts(config, kinds, source, accelerator, run, start.vae, start.init)
        text = parts.texts[0] if config.text is not None and config.text.frozen else None
        cache = cls.open_cache(config, Encoders(parts.autoencoder, text), source, accelerator, run)
        conditions = [kind(parts, config, accelerator, cache) for kind in kinds]
        for condition in conditions:
            condition.data = source
        return cls(parts, config, accelerator, conditions, cache)

    def train_step(self, batches: Sequence[Batch], step: int, schedule_step: int | None = None) -> StepReport:
        """Regress the prediction's target on latents with noise of random levels."""
        found, seen = [], []
        for batch in self.network.micro_batches(batches):
            loss, observed = self._batch_loss(self.network.wrapped, batch)
            self.network.backward(loss / len(batches))
            found.append({"loss": loss.detach()})
            seen.append(observed)
        norm = self.network.step(self.config.gradient_clip)
        self.update_averages(self.network.network, step)
        observed = mean_of(seen) | of_gradient(norm, self.config.gradient_clip)
        return StepReport(mean_of(found) | {"gradient_norm": norm}, observed)

    @torch.no_grad()
    def validate(self, batch: Batch) -> Tensor:
        """The loss () of the averaged weights."""
        return self._batch_loss(self.emas[0].network, batch)[0]

    def _batch_loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss () of a micro-batch, and what was observed on the way."""
        latents = sampled(batch, self.autoencoder, self.cache, self.random, self.accelerator.device)
        level = moved(self.schedule.sample(self.random.uniform("level", batch.step, batch.slots)), latents.device)
        noise, seen = self._noise(batch, latents.shape[1:])
        noise, seen = moved(noise, latents.device), moved(seen, latents.device)
        told = [condition.inputs(batch) for condition in self.conditions]
        output = network(level.noisy(latents, seen), level.t, *told)
        return self._loss(output, latents, noise, level).mean(), self._observed(network, latents, noise, level)

    def _observed(self, network: nn.Module, latents: Tensor, noise: Tensor, level: Level) -> dict[str, Tensor]:
        """The latents' moments, what was observed of the conditions, and the loss of an output of zeros."""
        target = self.loss.prediction.target(latents, noise, level)
        zeros = self.loss(torch.zeros_like(target), target, level).mean()
        told = self.accelerator.unwrap_model(network).observed
        moments = {} if self.parts.autoencoder.config.is_pixel_space else of_latents(latents)
        return {"loss_of_zeros": zeros, **moments, **told}

    def _noise(self, batch: Batch, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The noise (B, C, h, w) that is regressed, and that which the network's input holds.

        Both have the same offset for each channel of a sample (Guttenberg 2023), so that the network learns to change
        the mean of an image; the second is perturbed besides (Ning et al. 2023, algorithm 1), as the errors that add
        up while sampling will be.
        """
        diffusion, step, slots = self.parts.diffusion, batch.step, batch.slots
        noise = seen = self.random.normal("noise", step, slots, shape)
        if diffusion.offset_noise:
            offset = self.random.normal("offset_noise", step, slots, (shape[0], 1, 1))
            noise = seen = noise + diffusion.offset_noise * offset
        if diffusion.input_perturbation:
            perturbation = self.random.normal("input_perturbation", step, slots, shape)
            seen = noise + diffusion.input_perturbation * perturbation
        return noise, seen

    def _loss(self, output: Tensor, latents: Tensor, noise: Tensor, level: Level) -> Tensor:
        """The loss of each sample, (B,), with that of the variance where the network learns one."""
        target = self.loss.prediction.target(latents, noise, level)
        if self.variance_loss is None:
            return self.loss(output, target, level)
        output, variance = output.chunk(2, dim=1)
        return self.loss(output, target, level) + self.variance_loss(output, variance, latents, noise, level)

    @property
    def average(self) -> Parts:
        """The pipeline with the first average of its weights."""
        return self._pipeline(self.emas[0])

    def _pipeline(self, ema: EMA) -> Parts:
        return replace(self.parts, **dict(ema.network.named_children()))

    def save(self, folder: Path) -> None:
        """Write the whole pipeline in diffusers layout to `folder`, with other averages to `folder/ema-DECAY`."""
        for ema, place in zip(self.emas, self.places(folder), strict=True):
            save_pipeline(self._pipeline(ema), place)

    def sample(self) -> Image.Image | None:
        """A sheet of samples of the data or of the images that the conditions name, always with the same seed."""
        draw = partial(TextToImage(self.average), num_inference_steps=self.config.sample_steps, seed=0)
        for condition in self.conditions:
            if (shown := condition.show(draw)) is not None:
                return contact_sheet(shown, columns=6) if shown else None
        asked: dict[str, Any] = {}
        for condition in self.conditions:
            examples = condition.examples()
            if examples is None:
                return None
            asked |= examples
        images = draw(**asked)
        return contact_sheet(images, columns=math.ceil(math.sqrt(1.5 * len(images))))
