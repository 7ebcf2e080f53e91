"""Runs of a very small autoencoder on grey images, for tests of saving and resuming."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from grey import Grey

from ldm import config
from ldm.config.root import Config
from ldm.training.runs.run import Run
from ldm.training.stages.autoencoder import AutoencoderStage

OPTIONS = ("batch_size=4", "max_steps=4", "save_every=1", "validation_images=16", "statistics_images=4")

SMALLER = ("autoencoder.block_out_channels=[8,8]", "autoencoder.norm_num_groups=4", "unet.sample_size=16")


def settings(*more: str) -> Config:
    return config.load("tiny", [*SMALLER, *(f"training.autoencoder.{option}" for option in (*OPTIONS, *more))])


def start(run: Path, *more: str) -> tuple[AutoencoderStage, Run, Config]:
    torch.manual_seed(0)
    asked = settings(*more)
    return AutoencoderStage.build(asked, Grey(), Accelerator(cpu=True)), Run(run, resume=True), asked
