"""Training steps of a U-Net: ours from a cache with the stage of `ldm train-unet`, and as in diffusers' scripts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm import config as configuration
from ldm.allocator import keep_freed_memory
from ldm.bench.networks import (
    TOKENS,
    operations,
    random_network,
    their_autoencoder,
    their_scheduler,
    their_text_encoder,
    their_unet,
)
from ldm.bench.workload import Run, Workload
from ldm.checkpoint.pipeline import Pipeline
from ldm.conditioning.base import TrainingContext
from ldm.conditioning.text.conditioning import TextConditioning
from ldm.conditioning.text.encoder import make_text_encoder
from ldm.conditioning.text.tokenizers import Tokenizer
from ldm.config.root import Config
from ldm.data.cached import CachedData
from ldm.data.images import to_tensor
from ldm.data.loader import BatchShare, TrainingData
from ldm.data.preparing import Batch
from ldm.data.random import StepRandom
from ldm.data.sources import IndexedSource
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.unet.unet import UNet
from ldm.processes import ProcessShare
from ldm.training.cache.caching import CacheWriter
from ldm.training.cache.fingerprints import Encoders, facts_of
from ldm.training.latents import sampled
from ldm.training.loop import precision_of, start_accelerator
from ldm.training.stages.unet import UNetStage

Inputs = Callable[[int], tuple[Tensor, Tensor]]  # a step's latents (B, C, h, w) and contexts (B, L, D)


class RandomImages(IndexedSource):
    """Source of random images with different captions."""

    class_names: tuple[str, ...] = ()

    def __init__(self, count: int, size: int) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def image(self, index: int) -> np.ndarray:
        """Return bytes (H, W, 3)."""
        return self.pixels[index]

    def shape(self, index: int) -> tuple[int, int]:
        """Return height and width."""
        return self.pixels.shape[1:3]

    def captions(self, index: int) -> list[str]:
        """Return one caption."""
        return [f"image number {index} of nothing but noise"]

    def label(self, index: int) -> int:
        """Return the only class."""
        return 0

    def stamp(self, index: int) -> str:
        """Return the index."""
        return str(index)


@dataclass(frozen=True)
class Trainer:
    """A stage that trains from a cache, and its data."""

    config: Config
    source: RandomImages
    cache: CachedData
    pipeline: Pipeline
    stage: UNetStage

    @property
    def batch_size(self) -> int:
        """Images per step."""
        return self.config.training.unet.batch_size

    @property
    def data(self) -> TrainingData:
        """The batches of all steps, as the training loop reads them."""
        share, seed = BatchShare(self.batch_size), self.config.training.seed
        return TrainingData(self.cache, self.config.data, share, seed, images=False)


def train_step(name: str, against: bool) -> Workload:
    """Do an optimizer step of a configuration's U-Net, from forward pass to EMA, on given latents and contexts."""
    return _workload(configuration.load(name), against, encoding=False)


def train_cached(name: str, against: bool) -> Workload:
    """Do an optimizer step from a cache; diffusers encodes images and captions in each step."""
    return _workload(configuration.load(name), against, encoding=True)


def _workload(config: Config, against: bool, encoding: bool) -> Workload:
    scratch = tempfile.TemporaryDirectory()
    trainer = make_trainer(config, Path(scratch.name))
    unet, stage = deepcopy(trainer.pipeline.denoiser), trainer.stage
    first = trainer.data[1, 0]
    reference = stage.validate(first).losses.mean()  # loss of the first step, without autocast
    inputs = _encoded(trainer, Path(scratch.name)) if encoding else _given(trainer, first)
    dtype = torch.float32 if precision_of(config.training.unet) == "no" else torch.bfloat16
    return Workload(
        ours=our_steps(trainer),
        theirs=their_steps(trainer, deepcopy(unet), inputs) if against else None,
        tuned=their_steps(trainer, unet, inputs, dtype) if against else None,
        plain=None if against else lambda: reference,
        flops=3 * trainer.batch_size * operations(config)["unet"],
        images=trainer.batch_size,
        dtype=dtype,
        close=scratch.cleanup,
    )


def make_trainer(config: Config, folder: Path) -> Trainer:
    """Make the stage of a configuration with random weights, which trains from a cache in `folder`."""
    settings = config.training.unet.model_copy(update={"cache_latents": True, "condition_dropout": 0.0})
    config = config.model_copy(update={"training": config.training.model_copy(update={"unet": settings})})
    keep_freed_memory()  # as `ldm train-unet` does; also used for diffusers
    accelerator = start_accelerator(settings, config.training.seed)
    assert config.text is not None
    text, source = config.text, RandomImages(settings.batch_size, config.data.size)
    captions = [caption for index in range(len(source)) for caption in source.captions(index)]
    autoencoder = random_network(lambda: Autoencoder(config.autoencoder))
    unet = random_network(lambda: UNet(config.denoiser))
    encoder = random_network(lambda: make_text_encoder(text)), Tokenizer.train(captions, 512, TOKENS)
    pipeline = Pipeline(autoencoder, unet, config.diffusion, {"text": TextConditioning([encoder])})
    encoders, share = Encoders(autoencoder, encoder).to(accelerator.device), ProcessShare()
    facts = facts_of(source, config.data, encoders, share, len(source))
    cache = CacheWriter(folder / "cache", source, facts, encoders, share, accelerator.device).write()
    context = TrainingContext(config, accelerator, source, autoencoder, cache)
    return Trainer(config, source, cache, pipeline, UNetStage(pipeline, context))


def our_steps(trainer: Trainer) -> Run:
    """Return the next step of the training loop, without logging and saving."""
    stage, data = trainer.stage, trainer.data
    steps = count(1)

    def run() -> Tensor:
        step = next(steps)
        batch = data[step, 0]
        stage.begin(step)
        return stage.train_step([batch], step).losses["loss"]

    return run


def their_steps(trainer: Trainer, unet: Any, inputs: Inputs, autocast: torch.dtype | None = None) -> Run:
    """Return a training step as in a diffusers script, with the random numbers of ours.

    Args:
        autocast: type of matrix products; if given, AdamW is fused and convolutions are channels-last.
    """
    from diffusers.training_utils import EMAModel

    config, device, tuned = trainer.config, trainer.stage.accelerator.device, autocast is not None
    settings, random, slots = config.training.unet, StepRandom(config.training.seed), range(trainer.batch_size)
    layout = torch.channels_last if tuned else torch.contiguous_format
    network = their_unet(unet).to(device).to(memory_format=layout).train()
    decay = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    optimizer = torch.optim.AdamW(network.parameters(), **decay, fused=tuned or None)
    average, scheduler = EMAModel(network.parameters()), their_scheduler(config.diffusion)
    steps = count(1)

    def run() -> Tensor:
        step = next(steps)
        latents, context = inputs(step)
        noise = random.normal("noise", step, slots, latents.shape[1:]).to(device)
        t = (random.uniform("level", step, slots) * scheduler.config.num_train_timesteps).long().to(device)
        with nullcontext() if autocast in (None, torch.float32) else torch.autocast(device.type, autocast):
            output = network(scheduler.add_noise(latents, noise, t), t, encoder_hidden_states=context).sample
        loss = F.mse_loss(output.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(network.parameters())
        return loss.detach()

    return run


def _given(trainer: Trainer, first: Batch) -> Inputs:
    """Return the latents and contexts of the first step in every step."""
    stage = trainer.stage
    latents = sampled(first, trainer.pipeline.autoencoder, trainer.cache, stage.random, stage.accelerator.device)
    [(context,)] = [each.training_inputs(first, stage.context) for each in stage.conditionings]
    return lambda step: (latents, context)


def _encoded(trainer: Trainer, folder: Path) -> Inputs:
    """Encode images and captions of each step with diffusers and transformers in float32."""
    device, data, random = trainer.stage.accelerator.device, trainer.data, trainer.stage.random
    autoencoder = their_autoencoder(deepcopy(trainer.pipeline.autoencoder)).to(memory_format=torch.contiguous_format)
    text = TextConditioning.of(trainer.pipeline)
    assert text is not None  # `make_trainer`
    [(encoder, tokenizer)] = text.encoders
    their_encoder = their_text_encoder(encoder, folder / "text_encoder").to(device)

    @torch.no_grad()
    def inputs(step: int) -> tuple[Tensor, Tensor]:
        batch = data[step, 0]
        images = to_tensor(np.stack([trainer.source.image(index) for index in batch.indices])).to(device)
        posterior = autoencoder.encode(images).latent_dist
        noise = random.normal("posterior", step, batch.slots, posterior.mean.shape[1:]).to(device)
        latents = (posterior.mean + posterior.std * noise) * autoencoder.config.scaling_factor
        return latents, their_encoder(tokenizer(list(batch.captions))[0].to(device))[0]

    return inputs
