"""`ldm train-vae`, `ldm train-unet` and `ldm train-classifier`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from ldm.cli.training import LatentOptions, TrainOptions, train_stage, training_command


@training_command(TrainOptions)
def train_vae(options: TrainOptions) -> None:
    """Train an autoencoder on images."""
    train_stage("autoencoder", "vae", options)


@training_command(LatentOptions)
def train_unet(options: LatentOptions) -> None:
    """Train a denoiser, and its text encoder or class embeddings, on latents or pixels."""
    train_stage("unet", "unet", options)


@dataclass(frozen=True)
class ClassifierOptions(LatentOptions):
    """Options of train-classifier."""

    config: Annotated[str, typer.Argument(help="A named configuration or a path to a YAML file.")] = "classifier"


@training_command(ClassifierOptions)
def train_classifier(options: ClassifierOptions) -> None:
    """Train a classifier on noisy latents, which guides images to a class (ldm generate --classifier)."""
    train_stage("classifier", "classifier", options)
