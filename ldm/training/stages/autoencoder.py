"""Stage one: the autoencoder against its reconstruction losses and a patch discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.checkpoint.find import find_autoencoder
from ldm.config.losses import CodebookConfig, LossConfig
from ldm.config.root import Config
from ldm.config.training import AutoencoderStageConfig
from ldm.data.images import contact_sheet, to_bytes, to_tensor
from ldm.data.loader import Batch
from ldm.data.preview import first_images
from ldm.data.sources import Source
from ldm.errors import UserError
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.discriminator import PatchDiscriminator
from ldm.models.precision import at_least_float32
from ldm.training.compatibility import check_same
from ldm.training.diagnostics.observations import mean_of, of_gradient, of_logits, of_posterior
from ldm.training.ema import EMA
from ldm.training.latents import measure
from ldm.training.losses import (
    AutoencoderLoss,
    adaptive_weight,
    check_perceptual,
    discriminator_loss,
    generator_loss,
    r1_loss,
)
from ldm.training.optim.groups import freeze
from ldm.training.runs.run import Run
from ldm.training.stages.codebook import CodebookTrainer, Quantised, quantise
from ldm.training.stages.stage import FROM_SCRATCH, Stage, StartingPoint, StepReport, frozen
from ldm.training.transfer import moved

SHOWN = 16  # images in a sample grid


class Reconstruction(nn.Module):
    """The autoencoder and the learned log-variance of its loss: all that one optimiser trains, in one forward pass."""

    def __init__(self, autoencoder: Autoencoder, config: LossConfig) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.factor = config.equivariance.factor if config.equivariance.weight else None
        variance = torch.tensor(config.reconstruction.initial_log_variance)
        self.log_variance = nn.Parameter(variance, requires_grad=config.reconstruction.learned_log_variance)
        self.observed: dict[str, Tensor] = {}  # in the last forward pass of training

    def forward(self, images: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor | Quantised, Tensor, Tensor | None]:
        """Reconstructions (B, 3, H, W), the bottleneck, log-variance (), and what averaged latents give.

        The bottleneck is the KL divergence (B,) in nats, or for kind vq what was quantised.
        """
        posterior = self.autoencoder.encode(images)
        if self.training:
            self.observed = of_posterior(posterior)
        latents = posterior.sample(noise=noise)
        small = self.autoencoder.decode(F.avg_pool2d(latents, self.factor)) if self.factor else None
        if self.autoencoder.config.bottleneck.has_codebook:
            bottleneck: Tensor | Quantised = quantise(self.autoencoder.quantize, posterior.mean)
        else:
            bottleneck = posterior.kl()  # type: ignore[attr-defined]
        return self.autoencoder.decode(latents), bottleneck, self.log_variance * 1.0, small


class AutoencoderStage(Stage):
    """Trains an autoencoder; generator and discriminator take their steps on the same images."""

    name = "autoencoder"
    config: AutoencoderStageConfig

    def __init__(
        self,
        autoencoder: Autoencoder,
        config: Config,
        accelerator: Accelerator,
        source: Source,
        trained: bool = False,  # its codebook is kept as it is at the start
    ) -> None:
        super().__init__(config, accelerator)
        self.loss_config, self.data = config.loss, config.data
        self.loss = AutoencoderLoss(config.loss, accelerator.device)
        self._check_whole(config)
        network = self.place(Reconstruction(autoencoder, config.loss))
        if config.autoencoder.bottleneck.has_codebook:  # averages move the codebook, or gradients do
            autoencoder.quantize.requires_grad_(config.loss.codebook.decay is None)
        self._start_steps = 0 if trained else config.loss.codebook.start_steps
        freeze(network, self.config.freeze)
        self.network = self.prepare(
            "reconstruction", network, self.config.learning_rate, self.config.learning_rates, averaged=True
        )
        self.codebook = (
            self._codebook(autoencoder, config.loss.codebook) if config.autoencoder.bottleneck.has_codebook else None
        )
        adversarial = config.loss.adversarial
        if adversarial.weight:
            discriminator = self.place(PatchDiscriminator(adversarial, config.autoencoder.in_channels))
            rate = adversarial.learning_rate or self.config.learning_rate
            self.discriminator = self.prepare("discriminator", discriminator, rate, {})
        self.latent_channels = config.autoencoder.latent_channels
        self.downsampling = config.autoencoder.downsampling_factor
        self._shown = to_tensor(first_images(source, SHOWN, config.data.size))
        self._colour = self._shown.mean((0, 2, 3), keepdim=True).to(accelerator.device)

    @classmethod
    def complete(cls, config: Config, run: Path) -> Config:
        """Return the configuration without segmentation maps, which an autoencoder does not need."""
        return config.model_copy(update={"data": config.data.model_copy(update={"map_classes": None})})

    @classmethod
    def check(cls, config: Config, run: Run, start: StartingPoint) -> None:
        """Raise UserError for what is invalid or missing, before time is spent on the data."""
        super().check(config, run, start)
        if config.autoencoder.is_pixel_space:
            raise UserError("autoencoder.kind identity has no weights to train: ldm train-unet trains on pixels")
        if config.loss.perceptual.weight:
            check_perceptual(config.loss.perceptual.net)
        if start.init is not None:
            find_autoencoder(start.init)

    @classmethod
    def build(
        cls,
        config: Config,
        source: Source,
        accelerator: Accelerator,
        run: Run | None = None,
        start: StartingPoint = FROM_SCRATCH,
    ) -> AutoencoderStage:
        """Build a new autoencoder, or that of `start`, with its losses."""
        sized = config.autoencoder.model_copy(update={"sample_size": config.data.size})
        if start.init is None:
            return cls(Autoencoder(sized), config, accelerator, source)
        autoencoder = Autoencoder.from_pretrained(find_autoencoder(start.init))
        check_same(autoencoder.config, sized, "autoencoder", start.init)
        autoencoder.config = sized  # its latent statistics are measured again
        return cls(autoencoder, config, accelerator, source, trained=True)

    def _check_whole(self, config: Config) -> None:
        """Refuse to divide weights among processes where a loss needs them whole."""
        whole = config.loss.adversarial.weight or config.autoencoder.bottleneck.has_codebook
        kind = self.accelerator.distributed_type
        if whole and kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise UserError(
                f"an autoencoder with a discriminator or a codebook is trained with DDP, not with {kind.value}"
            )

    def _codebook(self, autoencoder: Autoencoder, config: CodebookConfig) -> CodebookTrainer:
        averages = [_autoencoder(ema).quantize for ema in self.emas]
        return CodebookTrainer(autoencoder.quantize, averages, config, self.accelerator, self.random)

    def train_step(self, batches: Sequence[Batch], step: int, schedule_step: int | None = None) -> StepReport:
        """One step of the autoencoder, then, from its start step on, one of the discriminator on the same images."""
        adversarial = self.loss_config.adversarial
        playing = bool(adversarial.weight) and max(step, schedule_step or step) >= adversarial.start_step
        self._start_codebook(batches, step)
        pairs, found, seen = [], [], []
        for batch in self.network.micro_batches(batches):
            assert batch.images is not None
            images = moved(batch.images, self.accelerator.device)
            reconstructions, bottleneck, *others = self.network.wrapped(images, self._noise(batch))
            terms = self.loss.terms(images, reconstructions, bottleneck, *others)
            if self.codebook is not None:
                self.codebook.see(bottleneck, batch.slots)
            if playing:
                terms |= self._adversarial_terms(terms["nll"], reconstructions)
                terms["total"] = terms["total"] + terms["adversarial_weight"] * terms["generator"]
            self.network.backward(terms["total"] / len(batches))
            pairs.append((images, reconstructions.detach()))
            found.append({name: term.detach() for name, term in terms.items()})
            seen.append(self._observed(images))
        norm = self.network.step(self.config.gradient_clip)
        self.update_averages(self.network.network, step)
        losses, observed = mean_of(found), mean_of(seen) | of_gradient(norm, self.config.gradient_clip)
        losses |= {"loss": losses.pop("total"), "gradient_norm": norm}
        if self.codebook is not None:
            losses |= self.codebook.update(step)
        if playing:
            adversarial_losses, logits = self._train_discriminator(batches, pairs, step)
            losses, observed = losses | adversarial_losses, observed | logits
        return StepReport(losses, observed)

    def _observed(self, images: Tensor) -> dict[str, Tensor]:
        """What the network observed, and the distance of images to one colour: a poor reconstruction."""
        seen = self.network.network.observed
        return seen | {"one_colour": self.loss.distance(self._colour, images)}

    def _noise(self, batch: Batch) -> Tensor | None:
        """Of the posterior samples, (B, C, h, w); a VQ autoencoder needs none."""
        if self.codebook is not None:
            return None
        assert batch.images is not None
        height, width = (side // self.downsampling for side in batch.images.shape[2:])
        shape = (self.latent_channels, height, width)
        return moved(self.random.normal("posterior", batch.step, batch.slots, shape), self.accelerator.device)

    @torch.no_grad()
    def _start_codebook(self, batches: Sequence[Batch], step: int) -> None:
        if self.codebook is None or step > self._start_steps:
            return
        # The unwrapped network: there are no gradients to synchronise.
        autoencoder = self.network.network.autoencoder
        with self.accelerator.autocast():
            images = [batch.images for batch in batches if batch.images is not None]
            z = [autoencoder.encode(each.to(self.accelerator.device)).mean for each in images]
        self.codebook.start(torch.cat(z), [slot for batch in batches for slot in batch.slots], step)

    def _adversarial_terms(self, nll: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
        config = self.loss_config.adversarial
        # The unwrapped network: its weights get no gradient here, so there is nothing to synchronise.
        with frozen(self.discriminator.network) as discriminator:
            logits, _ = discriminator(reconstructions)
        generator = generator_loss(logits, config.kind)
        weight = torch.tensor(config.weight, device=nll.device, dtype=nll.dtype)
        if config.adaptive:
            weight = weight * self._balance(nll, generator)
        return {"generator": generator, "adversarial_weight": weight}

    def _balance(self, nll: Tensor, generator: Tensor) -> Tensor:
        """The adaptive weight, by the norms of all processes' gradient, not of one process' share."""
        last = self.network.network.autoencoder.last_layer
        # Where the backward pass is in float16, gradients of means vanish unless they are scaled up.
        scaler, scale = self.accelerator.scaler, torch.ones((), device=nll.device)
        scale = scale if scaler is None else scaler.scale(scale)
        gradients = [torch.autograd.grad(scale * term, last, retain_graph=True)[0] for term in (nll, generator)]
        return adaptive_weight(*(self.accelerator.reduce(at_least_float32(g) / scale, "mean") for g in gradients))

    def _train_discriminator(
        self, batches: Sequence[Batch], pairs: list[tuple[Tensor, Tensor]], step: int
    ) -> StepReport:
        found, seen = [], []
        for (images, reconstructions), _ in zip(pairs, self.discriminator.micro_batches(batches), strict=True):
            terms, logits = self._discriminator_terms(images, reconstructions, step)
            self.discriminator.backward(reduce(torch.add, terms.values()) / len(batches))
            found.append({name: term.detach() for name, term in terms.items()})
            seen.append(of_logits(*logits.detach().chunk(2)))
        norm = self.discriminator.step(self.config.gradient_clip)
        return StepReport(mean_of(found) | {"discriminator_gradient_norm": norm}, mean_of(seen))

    def _discriminator_terms(
        self, images: Tensor, reconstructions: Tensor, step: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """`discriminator` and, in every `r1_every`-th step, the weighted `r1`; the logits of both halves."""
        config = self.loss_config.adversarial
        penalising = bool(config.r1_weight) and step % config.r1_every == 0
        # One forward pass over both halves: DistributedDataParallel allows one for each backward pass.
        both = torch.cat([images, reconstructions])
        logits, penalties = self.discriminator.wrapped(both, len(images) if penalising else 0)
        real, fake = logits.chunk(2)
        terms = {"discriminator": discriminator_loss(real, fake, config.kind)}
        if penalising:
            terms["r1"] = config.r1_every * r1_loss(penalties, config.r1_weight)
        return terms, logits

    @torch.no_grad()
    def validate(self, batch: Batch) -> Tensor:
        """The loss () of the averaged weights without its adversarial term."""
        assert batch.images is not None
        images = moved(batch.images, self.accelerator.device)
        return self.loss.terms(images, *self.emas[0].network(images, self._noise(batch)))["total"]

    @property
    def average(self) -> Autoencoder:
        """The first average of the autoencoder."""
        return _autoencoder(self.emas[0])

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs, as a tree of tensors and plain values."""
        state = super().state()
        return state if self.codebook is None else state | {"codebook": self.codebook.state}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up where `state` was written."""
        super().load_state(state)
        if self.codebook is not None:
            self.codebook.load_state(state["codebook"])

    def save(self, folder: Path) -> None:
        """Write the autoencoder to `folder/vae`, other averages to `folder/ema-DECAY/vae`."""
        for ema, place in zip(self.emas, self.places(folder), strict=True):
            _autoencoder(ema).save_pretrained(place / "vae")

    def finish(self, source: Source) -> dict[str, Any]:
        """Measure the latent statistics over many images and all processes, and keep them with the autoencoder."""
        count = self.config.statistics_images
        facts = [measure(_autoencoder(ema), source, self.data.size, count, self.accelerator) for ema in self.emas]
        return facts[0]

    @torch.no_grad()
    def sample(self) -> Image.Image:
        """The same images each time, every row of them above the row of their reconstructions."""
        images = self._shown.to(self.accelerator.device)
        made = self.average.decode(self.average.encode(images).mode())
        originals, copies, columns = to_bytes(images), to_bytes(made), SHOWN // 2
        rows = [half[at : at + columns] for at in range(0, len(images), columns) for half in (originals, copies)]
        return contact_sheet(np.concatenate(rows), columns)


def _autoencoder(ema: EMA) -> Autoencoder:
    assert isinstance(ema.network, Reconstruction)
    return ema.network.autoencoder
