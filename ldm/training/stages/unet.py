"""Stage two: train the denoiser and its conditionings on the latents of a trained autoencoder."""

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

from ldm.checkpoint.diffusers.pipeline import save_pipeline
from ldm.checkpoint.find import find_model
from ldm.checkpoint.pipeline import Pipeline
from ldm.conditioning.base import TrainingContext
from ldm.conditioning.conditional_denoiser import ConditionalDenoiser
from ldm.conditioning.fit import all_conditionings
from ldm.conditioning.text.conditioning import TextConditioning
from ldm.config.root import Config
from ldm.config.training import UNetStageConfig
from ldm.data.images import contact_sheet
from ldm.data.loader import Batch
from ldm.data.sources import Source
from ldm.diffusion.bound import Decoder
from ldm.diffusion.level import Level
from ldm.diffusion.loss import DenoisingLoss, VarianceLoss
from ldm.diffusion.schedule import make_schedule
from ldm.errors import UserError
from ldm.generation import TextToImage
from ldm.training.cache.fingerprints import Encoders
from ldm.training.diagnostics.observations import mean_of, of_gradient, of_latents
from ldm.training.ema import EMA
from ldm.training.latents import sampled
from ldm.training.optim.groups import freeze
from ldm.training.runs.run import Run, complete_config
from ldm.training.stages.initialize import initial_pipeline
from ldm.training.stages.latent_stage import LatentStage, cache_options
from ldm.training.stages.stage import StartingPoint, StepReport, ValidationLoss
from ldm.training.transfer import moved


class UNetStage(LatentStage):
    """Trains a denoiser, and modules of its conditionings with it, at the noise levels of a schedule."""

    name = "unet"
    config: UNetStageConfig

    def __init__(self, pipeline: Pipeline, context: TrainingContext) -> None:
        config, accelerator = context.config, context.accelerator
        self.conditionings = list(pipeline.conditionings.values())
        needs_images = any(each.needs_images(config) for each in self.conditionings)
        super().__init__(config, accelerator, **cache_options(context.cache, needs_images))
        self.pipeline, self.context = pipeline, context
        self.schedule = make_schedule(config.diffusion.schedule)
        self.loss = DenoisingLoss(config.diffusion)
        decoder: Decoder = "discretised" if config.autoencoder.is_pixel_space else "gaussian"  # pixels have 256 values
        self.variance_loss = VarianceLoss(config.diffusion, decoder) if config.diffusion.learned_variance else None
        trained = {name: module for each in self.conditionings for name, module in each.trained(context).items()}
        for name, module in pipeline.modules.items():
            if name not in {pipeline.denoiser_name, *trained}:
                module.to(accelerator.device).eval().requires_grad_(False)
        functions = [each.conditioning_fn(config) for each in self.conditionings]
        network = self.place(ConditionalDenoiser(pipeline.denoiser, pipeline.denoiser_name, trained, functions))
        freeze(network, self.config.freeze)
        own = {name: rate for each in self.conditionings for name, rate in each.learning_rates(context).items()}
        rates = own | self.config.learning_rates
        self.network = self.prepare("unet", network, self.config.learning_rate, rates, averaged=True)

    @classmethod
    def complete(cls, config: Config, run: Path) -> Config:
        """Return the configuration with the options that its conditionings read from their sources."""
        return complete_config(config, run)

    @classmethod
    def check(cls, config: Config, run: Run, start: StartingPoint) -> None:
        """Check configuration and files before time is spent on the data."""
        denoiser = config.denoiser_class  # raises if there is none
        check_options(config)
        for kind in config.conditionings:
            kind.check_training(config, new=start.init is None and not run.steps())
        denoiser.to_fields(config.denoiser)  # raises for a denoiser that cannot be saved
        if start.init is not None:
            find_model(start.init)
        super().check(config, run, start)

    @classmethod
    def build(
        cls, config: Config, source: Source, accelerator: Accelerator, run: Run, start: StartingPoint
    ) -> UNetStage:
        """Build a new U-Net and its conditionings, or those of `start` or of the run."""
        pipeline = initial_pipeline(config, source, accelerator, run, start.vae, start.init)
        text = TextConditioning.of(pipeline)
        frozen = text.encoders[0] if text is not None and config.text.frozen else None
        cache = cls.open_cache(config, Encoders(pipeline.autoencoder, frozen), source, accelerator, run)
        return cls(pipeline, TrainingContext(config, accelerator, source, pipeline.autoencoder, cache))

    def train_step(self, batches: Sequence[Batch], step: int, schedule_step: int | None = None) -> StepReport:
        """Regress the prediction's target on latents with noise of random levels."""
        found, seen = [], []
        for batch in self.network.micro_batches(batches):
            losses, _, observed = self._batch_losses(self.network.wrapped, batch, self.context)
            loss = losses.mean()
            self.network.backward(loss / len(batches))
            found.append({"loss": loss.detach()})
            seen.append(observed)
        norm = self.network.step(self.config.gradient_clip)
        self.update_averages(self.network.network, step)
        observed = mean_of(seen) | of_gradient(norm, self.config.gradient_clip)
        return StepReport(mean_of(found) | {"gradient_norm": norm}, observed)

    @torch.no_grad()
    def validate(self, batch: Batch, cached: bool = True) -> ValidationLoss:
        """Return the losses of the averaged weights."""
        context = self.context if cached else replace(self.context, cache=None)
        losses, level, _ = self._batch_losses(self.emas[0].network, batch, context)
        return ValidationLoss(losses, level.t / self.pipeline.diffusion.schedule.num_train_timesteps)

    def _batch_losses(
        self, network: nn.Module, batch: Batch, context: TrainingContext
    ) -> tuple[Tensor, Level, dict[str, Tensor]]:
        """Return the losses (B,) of a micro-batch, its levels, and what was observed on the way."""
        autoencoder, cache = self.pipeline.autoencoder, context.cache
        latents = sampled(batch, autoencoder, cache, self.random, self.accelerator.device)
        level = moved(self.schedule.sample(self.random.uniform("level", batch.step, batch.slots)), latents.device)
        noise, seen = self._noise(batch, latents.shape[1:])
        noise, seen = moved(noise, latents.device), moved(seen, latents.device)
        inputs = [each.training_inputs(batch, context) for each in self.conditionings]
        output, observed = network(level.noisy(latents, seen), level.t, *inputs)
        losses = self._loss(output, latents, noise, level)
        return losses, level, self._observed(latents, noise, level) | observed

    def _observed(self, latents: Tensor, noise: Tensor, level: Level) -> dict[str, Tensor]:
        """Return the latents' moments, and the loss of an output of zeros."""
        target = self.loss.prediction.target(latents, noise, level)
        zeros = self.loss(torch.zeros_like(target), target, level).mean()
        moments = {} if self.pipeline.autoencoder.config.is_pixel_space else of_latents(latents)
        return {"loss_of_zeros": zeros, **moments}

    def _noise(self, batch: Batch, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the noise (B, C, h, w) that is regressed, and the noise in the network's input.

        Both have the same offset for each channel of a sample (Guttenberg 2023), so that the network learns to change
        the mean of an image. The second is also perturbed (Ning et al. 2023, algorithm 1), like the errors that
        accumulate in sampling.
        """
        diffusion, step, slots = self.pipeline.diffusion, batch.step, batch.slots
        noise = seen = self.random.normal("noise", step, slots, shape)
        if diffusion.offset_noise:
            offset = self.random.normal("offset_noise", step, slots, (shape[0], 1, 1))
            noise = seen = noise + diffusion.offset_noise * offset
        if diffusion.input_perturbation:
            perturbation = self.random.normal("input_perturbation", step, slots, shape)
            seen = noise + diffusion.input_perturbation * perturbation
        return noise, seen

    def _loss(self, output: Tensor, latents: Tensor, noise: Tensor, level: Level) -> Tensor:
        """Return the loss of each sample, (B,), including the loss of a learned variance."""
        target = self.loss.prediction.target(latents, noise, level)
        if self.variance_loss is None:
            return self.loss(output, target, level)
        output, variance = output.chunk(2, dim=1)
        return self.loss(output, target, level) + self.variance_loss(output, variance, latents, noise, level)

    @property
    def average(self) -> Pipeline:
        """The pipeline with the first average of its weights."""
        return self._pipeline(self.emas[0])

    def _pipeline(self, ema: EMA) -> Pipeline:
        return self.pipeline.with_modules(dict(ema.network.named_children()))

    def save(self, folder: Path) -> None:
        """Write the pipeline in diffusers' layout to `folder`, with other averages to `folder/ema-DECAY`."""
        for ema, place in zip(self.emas, self.places(folder), strict=True):
            save_pipeline(self._pipeline(ema), place)

    def sample(self) -> Image.Image | None:
        """Generate the sample grid, of the data or of what the configuration names, always with the same seed."""
        generate = partial(TextToImage(self.average), num_inference_steps=self.config.sample_steps, seed=0)
        for each in self.conditionings:
            if (rows := each.sample_rows(self.context, generate)) is not None:
                return contact_sheet(rows, columns=6) if rows else None
        options: dict[str, Any] = {}
        for each in self.conditionings:
            own = each.sample_options(self.context)
            if own is None:
                return None
            options |= own
        images = generate(**options)
        return contact_sheet(images, columns=math.ceil(math.sqrt(1.5 * len(images))))


def check_options(config: Config) -> None:
    """Raise UserError for an option of `training.unet` that is set and that no conditioning of the model uses."""
    used = {name for kind in config.conditionings for name in kind.training_options}
    known = {name for kind in all_conditionings() for name in kind.training_options}
    for name in sorted(known - used):
        if getattr(config.training.unet, name) != UNetStageConfig.model_fields[name].get_default():
            names = " and ".join(kind.name for kind in config.conditionings)
            raise UserError(f"training.unet.{name} is set, but a model with conditioning {names} does not use it")
