"""Stage two: the U-Net, and with it the text encoder, on the latents of a trained autoencoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from ldm.checkpoint.diffusers import Parts, save_pipeline
from ldm.config import Config, UNetStageConfig
from ldm.data.cached import CachedData
from ldm.data.draws import Draws
from ldm.data.loader import Batch
from ldm.data.pictures import contact_sheet
from ldm.diffusion.level import Level
from ldm.diffusion.loss import DenoisingLoss, VarianceLoss
from ldm.diffusion.schedule import make_schedule
from ldm.models.text import TextEncoder
from ldm.models.unet import UNet
from ldm.pipeline import TextToImage
from ldm.training.ema import EMA
from ldm.training.observations import mean_of, of_contexts, of_gradient, of_latents
from ldm.training.optimizer import freeze
from ldm.training.stage import Stage


class TextConditioned(nn.Module):
    """Text encoder and U-Net as one network: what is trained together, in one forward pass."""

    def __init__(self, unet: UNet, text_encoder: TextEncoder) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder
        self.observed: dict[str, Tensor] = {}  # in the last forward pass of training

    def forward(self, noisy: Tensor, t: Tensor, token_ids: Tensor, mask: Tensor) -> Tensor:
        """The U-Net's output (B, C, h, w) for noisy latents at `t` (B,) given captions of token ids (B, L)."""
        context = self.text_encoder(token_ids, mask).context
        if self.training:
            self.observed = of_contexts(context, token_ids)
        return self.unet(noisy, t, context)


class UNetStage(Stage):
    """Trains a U-Net, and its text encoder if that is not frozen, on the noise levels of a schedule."""

    name = "unet"
    config: UNetStageConfig

    def __init__(self, parts: Parts, config: Config, accelerator: Accelerator, cache: CachedData | None) -> None:
        self.config = config.training.unet
        self.accelerator, self.draws = accelerator, Draws(config.training.seed)
        self.parts, self.cache, self.needs_pictures = parts, cache, cache is None
        self.unreadable = None if cache is None else cache.unreadable
        self.schedule = make_schedule(config.diffusion.schedule)
        self.loss = DenoisingLoss(config.diffusion)
        self.variance_loss = VarianceLoss(config.diffusion) if config.diffusion.learned_variance else None
        self.autoencoder = parts.autoencoder.to(accelerator.device).eval().requires_grad_(False)
        [(text_encoder, self.tokenizer)] = parts.texts
        frozen = config.text is not None and config.text.frozen
        self.frozen_text = text_encoder.to(accelerator.device).eval().requires_grad_(False) if frozen else None
        self.networks, self.optimizers = {}, {}
        network = self.place(parts.unet if frozen else TextConditioned(parts.unet, text_encoder))
        self.emas = self.averages_of(network)
        prefix = "unet." if frozen else ""
        freeze(network, self.config.freeze, prefix)
        text_rate = self.config.text_learning_rate
        rates = {} if text_rate is None else {"text": text_rate}
        self.prepare("unet", network, self.config.learning_rate, rates | self.config.learning_rates, self.emas, prefix)

    def losses(self, batches: list[Batch], step: int) -> dict[str, Tensor]:
        """One step: noise the latents to random levels and regress the prediction's target."""
        network, found, seen = self.networks["unet"], [], []
        for batch in self.micro_batches(batches, network):
            loss, observed = self._batch_loss(network, batch)
            self.accelerator.backward(loss / len(batches))
            found.append({"loss": loss.detach()})
            seen.append(observed)
        norm = self.update("unet")
        self.update_averages("unet", step)
        self.observed = mean_of(seen) | of_gradient(norm, self.config.gradient_clip)
        return mean_of(found) | {"gradient_norm": norm}

    @torch.no_grad()
    def validate(self, batch: Batch) -> Tensor:
        """The loss () of the averaged weights."""
        return self._batch_loss(self.emas[0].network, batch)[0]

    def _batch_loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss () of a micro-batch, and what was observed on the way."""
        latents = self._latents(batch)
        level = self.schedule.sample(self.draws.uniform("level", batch.step, batch.slots).to(latents.device))
        noise, seen = self._noise(batch, latents.shape[1:])
        noise, seen = noise.to(latents.device), seen.to(latents.device)
        output = network(level.noisy(latents, seen), level.t, *self._told(batch))
        return self._loss(output, latents, noise, level).mean(), self._observed(network, latents, noise, level)

    def _observed(self, network: nn.Module, latents: Tensor, noise: Tensor, level: Level) -> dict[str, Tensor]:
        """The latents' moments, what the text encoder observed, and the loss of an output of zeros."""
        network = self.accelerator.unwrap_model(network)
        target = self.loss.prediction.target(latents, noise, level)
        zeros = self.loss(torch.zeros_like(target), target, level).mean()
        told = network.observed if isinstance(network, TextConditioned) else {}
        return {"loss_of_zeros": zeros, **of_latents(latents), **told}

    def _noise(self, batch: Batch, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The noise (B, C, h, w) that is regressed, and that which the network's input holds.

        Both have the same offset for each channel of a sample (Guttenberg 2023), so that the network learns to change
        the mean of a picture; the second is perturbed besides (Ning et al. 2023, algorithm 1), as the errors that add
        up while sampling will be.
        """
        diffusion, step, slots = self.parts.diffusion, batch.step, batch.slots
        noise = seen = self.draws.normal("noise", step, slots, shape)
        if diffusion.offset_noise:
            offset = self.draws.normal("offset_noise", step, slots, (shape[0], 1, 1))
            noise = seen = noise + diffusion.offset_noise * offset
        if diffusion.input_perturbation:
            perturbation = self.draws.normal("input_perturbation", step, slots, shape)
            seen = noise + diffusion.input_perturbation * perturbation
        return noise, seen

    def _loss(self, output: Tensor, latents: Tensor, noise: Tensor, level: Level) -> Tensor:
        """The loss of each sample, (B,), with that of the variance where the network learns one."""
        target = self.loss.prediction.target(latents, noise, level)
        if self.variance_loss is None:
            return self.loss(output, target, level)
        output, variance = output.chunk(2, dim=1)
        return self.loss(output, target, level) + self.variance_loss(output, variance, latents, noise, level)

    @torch.no_grad()
    def _latents(self, batch: Batch) -> Tensor:
        """A sample of each picture's posterior, scaled, (B, C, h, w)."""
        if self.cache is not None:
            posterior = self.autoencoder.posterior(self.cache.moments(batch.indices).to(self.accelerator.device))
        else:
            assert batch.pictures is not None
            posterior = self.autoencoder.encode(batch.pictures.to(self.accelerator.device, non_blocking=True))
        shape = posterior.mode().shape[1:]
        noise = self.draws.normal("posterior", batch.step, batch.slots, shape)
        return posterior.sample(noise=noise.to(self.accelerator.device))

    def _told(self, batch: Batch) -> tuple[Tensor, ...]:
        """What the trained network is told of the captions: ids and mask (B, L), or a frozen encoder's context."""
        captions = self._captions(batch)
        if self.frozen_text is not None and self.cache is not None and self.cache.has_context:
            return (self.cache.embedded("context", batch.indices, captions).to(self.accelerator.device),)
        ids, mask = (tensor.to(self.accelerator.device) for tensor in self.tokenizer(captions))
        if self.frozen_text is None:
            return ids, mask
        with torch.no_grad(), self.accelerator.autocast():
            return (self.frozen_text(ids, mask).context,)

    def _captions(self, batch: Batch) -> list[str]:
        """The captions, a share of them replaced by the empty prompt (Ho and Salimans 2022)."""
        draws = self.draws.uniform("condition", batch.step, batch.slots).tolist()
        pairs = zip(batch.captions, draws, strict=True)
        return ["" if draw < self.config.condition_dropout else caption for caption, draw in pairs]

    @property
    def average(self) -> Parts:
        """The pipeline with the first average of its weights."""
        return self._pipeline(self.emas[0])

    def _pipeline(self, ema: EMA) -> Parts:
        network = ema.network
        if isinstance(network, UNet):
            return replace(self.parts, unet=network)
        assert isinstance(network, TextConditioned)
        return replace(self.parts, unet=network.unet, text_encoder=network.text_encoder)

    def save(self, folder: Path) -> None:
        """Write the whole pipeline in diffusers layout to `folder`, with other averages to `folder/ema-DECAY`."""
        for ema, place in zip(self.emas, self.places(folder), strict=True):
            save_pipeline(self._pipeline(ema), place)

    def sample(self) -> Image.Image | None:
        """Pictures of the configured prompts, one a prompt, always with the same seed."""
        prompts: Sequence[str] = self.config.sample_prompts
        if not prompts:
            return None
        pipe = TextToImage(self.average)
        images = pipe(
            list(prompts),
            guidance_scale=self.config.sample_guidance_scale,
            num_inference_steps=self.config.sample_steps,
            seed=0,
        )
        return contact_sheet(images, columns=math.ceil(math.sqrt(1.5 * len(images))))
