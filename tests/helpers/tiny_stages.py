"""Stages of training on a source of a few flat images, for tests of one optimizer step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from ldm import config
from ldm.config.root import Config
from ldm.data.loader import Batch, BatchShare, TrainingData
from ldm.data.sources import IndexedSource
from ldm.training.runs.run import Run
from ldm.training.stages.autoencoder import AutoencoderStage
from ldm.training.stages.stage import StartingPoint
from ldm.training.stages.unet import UNetStage

PLAYING = ("loss.adversarial.weight=0.5", "loss.adversarial.start_step=2", "loss.adversarial.discriminator_channels=8")
NAMES = ("ant", "bee", "cow", "dog")


class Colours(IndexedSource):
    """Flat images of different colours."""

    def __len__(self) -> int:
        return 12

    def image(self, index: int) -> np.ndarray:
        return np.full((32, 32, 3), (20 * index, 255 - 20 * index, 128), dtype=np.uint8)

    def captions(self, index: int) -> list[str]:
        return [f"colour number {index}"]

    def stamp(self, index: int) -> str:
        return str(index)


def settings(*overrides: str) -> Config:
    return config.load("tiny", ["training.autoencoder.batch_size=8", "training.unet.batch_size=8", *overrides])


def autoencoder_stage(*overrides: str) -> AutoencoderStage:
    torch.manual_seed(0)
    return AutoencoderStage.build(settings(*overrides), Colours(), Accelerator(cpu=True))


def micro_batches(step: int, accumulation: int = 1, images: bool = True) -> list[Batch]:
    data = TrainingData(Colours(), settings().data, BatchShare(8, accumulation=accumulation), 0, images)
    return [data[step, micro] for micro in range(accumulation)]


def weights(stage: AutoencoderStage | UNetStage, name: str) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in stage.networks[name].parameters()]


def changed(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def unet_stage(measured: Path, *overrides: str) -> UNetStage:
    torch.manual_seed(0)
    accelerator, run = Accelerator(cpu=True), Run(measured.parent / "run", resume=True)
    return UNetStage.build(settings(*overrides), Colours(), accelerator, run, StartingPoint(vae=str(measured)))


class Kinds(Colours):
    """The flat images, in four classes."""

    class_names = NAMES

    def label(self, index: int) -> int:
        return index % 4
