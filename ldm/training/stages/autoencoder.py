"""Stage one: the autoencoder, trained on the terms of its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils.operations import recursively_apply
from PIL import Image
from torch import Tensor, nn

from ldm.checkpoint.find import find_autoencoder
from ldm.config.compatibility import check_same
from ldm.config.losses import LossConfig, active_terms
from ldm.config.root import Config
from ldm.config.training import AutoencoderStageConfig
from ldm.data.images import contact_sheet, to_bytes, to_tensor
from ldm.data.loader import Batch
from ldm.data.preview import shown_images
from ldm.data.sources import Source
from ldm.errors import UserError
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.precision import require_finite
from ldm.training.diagnostics.observations import mean_of, of_gradient, of_latents
from ldm.training.latents import measure
from ldm.training.losses.term import LossTerm, MicroBatch, Output, total_loss
from ldm.training.optim.groups import freeze
from ldm.training.runs.run import Run
from ldm.training.stages.stage import FROM_SCRATCH, Stage, StartingPoint, StepReport, ValidationLoss
from ldm.training.transfer import moved

SHOWN = 16  # images in a sample grid


class Reconstruction(nn.Module):
    """The autoencoder with what its loss adds: all that one optimizer trains, in one forward pass."""

    log_variance: nn.Parameter  # of the distances, ()

    def __init__(self, autoencoder: Autoencoder, config: LossConfig) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        terms = active_terms(config, autoencoder.config)
        self.terms = {name: (term, getattr(config, name)) for name, term in terms.items()}
        for term, section in self.terms.values():
            term.extend(section, self)

    def forward(self, images: Tensor, noise: Tensor) -> Output:
        """Reconstruct images (B, 3, H, W) from posterior samples with the given noise (B, C, h, w)."""
        posterior = self.autoencoder.encode(images)
        observed = of_latents(posterior.mean, posterior.variance) if self.training else {}
        latents = posterior.sample(noise=noise)
        found = {name: term.forward(section, self, posterior, latents) for name, (term, section) in self.terms.items()}
        return Output(self.autoencoder.decode(latents), found, observed)


class AutoencoderStage(Stage):
    """Train an autoencoder to minimize the sum of the configured loss terms."""

    name = "autoencoder"
    config: AutoencoderStageConfig

    def __init__(
        self,
        autoencoder: Autoencoder,
        config: Config,
        accelerator: Accelerator,
        source: Source,
        pretrained: bool = False,
    ) -> None:
        super().__init__(config, accelerator)
        self.loss_config, self.data, self.pretrained = config.loss, config.data, pretrained
        terms = active_terms(config.loss, config.autoencoder)
        self._check_sharding(terms)
        self.shown = to_tensor(shown_images(source, config.data, SHOWN))
        network = self.place(Reconstruction(autoencoder, config.loss))
        freeze(network, self.config.freeze)
        self.network = self.prepare(
            "reconstruction", network, self.config.learning_rate, self.config.learning_rates, averaged=True
        )
        self.terms: dict[str, LossTerm] = {name: term(getattr(config.loss, name), self) for name, term in terms.items()}

    @classmethod
    def complete(cls, config: Config, run: Path) -> Config:
        """Return the configuration without segmentation maps, which an autoencoder does not need."""
        return config.model_copy(update={"data": config.data.model_copy(update={"map_classes": None})})

    @classmethod
    def check(cls, config: Config, run: Run, start: StartingPoint) -> None:
        """Check configuration and files before time is spent on the data."""
        super().check(config, run, start)
        if config.autoencoder.is_pixel_space:
            raise UserError("autoencoder.kind identity has no weights to train: ldm train-unet trains on pixels")
        for name, term in active_terms(config.loss, config.autoencoder).items():
            term.check_files(getattr(config.loss, name))
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
        return cls(autoencoder, config, accelerator, source, pretrained=True)

    def _check_sharding(self, terms: Mapping[str, type[LossTerm]]) -> None:
        kind = self.accelerator.distributed_type
        whole = [name for name, term in terms.items() if not term.shardable]
        if whole and kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise UserError(f"loss.{whole[0]} does not train with {kind.value}: use DistributedDataParallel")

    def train_step(self, batches: Sequence[Batch], step: int, schedule_step: int | None = None) -> StepReport:
        """Do one step of the autoencoder, and then what its loss terms train."""
        at = max(step, schedule_step or step)
        terms = [term for term in self.terms.values() if at >= term.start_step]
        for term in terms:
            term.begin_step(batches, step)
        seen, found, observed = [], [], []
        for batch in self.network.micro_batches(batches):
            images = self._images(batch)
            output = self.network.wrapped(images, self._noise(batch))
            losses = total_loss(terms, images, output)
            self.network.backward(losses["total"] / len(batches))
            output = recursively_apply(Tensor.detach, output)
            seen.append(MicroBatch(batch.slots, images, output))
            found.append(recursively_apply(Tensor.detach, losses))
            observed.append(reduce(or_, (term.observe(images, output) for term in terms), output.observed))
        norm = self.network.step(self.config.gradient_clip)
        self.update_averages(self.network.network, step)
        report, facts = mean_of(found), mean_of(observed) | of_gradient(norm, self.config.gradient_clip)
        report |= {"loss": report.pop("total"), "gradient_norm": norm}
        for term in terms:
            more_losses, more_facts = term.end_step(seen, step)
            report, facts = report | more_losses, facts | more_facts
        return StepReport(report, facts)

    def _images(self, batch: Batch) -> Tensor:
        assert batch.images is not None
        return moved(batch.images, self.accelerator.device)

    def _noise(self, batch: Batch) -> Tensor:
        """Return the noise (B, C, h, w) of the posterior samples."""
        assert batch.images is not None
        config = self.autoencoder.config
        shape = (config.latent_channels, *(side // config.downsampling_factor for side in batch.images.shape[2:]))
        return moved(self.random.normal("posterior", batch.step, batch.slots, shape), self.accelerator.device)

    @torch.no_grad()
    def validate(self, batch: Batch, cached: bool = True) -> ValidationLoss:
        """Return the loss of the averaged weights, without adversarial terms."""
        images = self._images(batch)
        terms = [term for term in self.terms.values() if term.in_validation]
        loss = total_loss(terms, images, self.emas[0].network(images, self._noise(batch)))["total"]
        return ValidationLoss(loss.reshape(1))

    @property
    def autoencoder(self) -> Autoencoder:
        """The autoencoder in training."""
        return _autoencoder(self.network.network)

    @property
    def averages(self) -> list[Autoencoder]:
        """The averages of the autoencoder; the first one is saved as the model."""
        return [_autoencoder(ema.network) for ema in self.emas]

    @property
    def average(self) -> Autoencoder:
        """The first average of the autoencoder."""
        return self.averages[0]

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs, as a tree of tensors and plain values."""
        states = {name: term.state() for name, term in self.terms.items()}
        return super().state() | {name: state for name, state in states.items() if state}

    def load_state(self, state: dict[str, Any]) -> None:
        """Load a `state`."""
        super().load_state(state)
        for name, term in self.terms.items():
            if name in state:
                term.load_state(state[name])

    def save(self, folder: Path) -> None:
        """Write the autoencoder to `folder/vae`, other averages to `folder/ema-DECAY/vae`."""
        for average, place in zip(self.averages, self.places(folder), strict=True):
            average.save_pretrained(place / "vae")

    def finish(self, source: Source) -> dict[str, Any]:
        """Measure the latent statistics of each average over many images and all processes, and set them."""
        count = self.config.statistics_images
        facts = [measure(average, source, self.data.size, count, self.accelerator) for average in self.averages]
        return facts[0]

    @torch.no_grad()
    def sample(self) -> Image.Image:
        """Return a sheet of the first images, each row above its reconstructions."""
        images = self.shown.to(self.accelerator.device)
        decoded = self.average.decode(self.average.encode(images).mode())
        reconstructions = require_finite(decoded, "the autoencoder")
        originals, copies, columns = to_bytes(images), to_bytes(reconstructions), SHOWN // 2
        rows = [half[at : at + columns] for at in range(0, len(images), columns) for half in (originals, copies)]
        return contact_sheet(np.concatenate(rows), columns)


def _autoencoder(network: nn.Module) -> Autoencoder:
    assert isinstance(network, Reconstruction)
    return network.autoencoder
