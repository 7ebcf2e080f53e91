"""Train an autoencoder with a discriminator in float64, to compare two processes with one.

Sums in another order differ by 1e-16 in float64, so that 50 adversarial steps still agree; larger differences are bugs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from ldm import config
from ldm.config.root import Config
from ldm.data.loader import BatchShare, TrainingData
from ldm.data.sources import IndexedSource
from ldm.training.runs.run import Run
from ldm.training.runs.saving import Saver
from ldm.training.stages.autoencoder import AutoencoderStage

STEPS, SAVED = 50, 6
BATCH, IMAGES = 4, 10
SMALL = (
    "autoencoder.block_out_channels=[8,8]",
    "autoencoder.norm_num_groups=4",
    "unet.sample_size=8",
    "data.size=16",
    "data.random_flip=true",
    f"training.autoencoder.batch_size={BATCH}",
    f"training.autoencoder.statistics_images={IMAGES}",
    "training.autoencoder.learning_rate=1e-3",
    "loss.reconstruction.learned_log_variance=true",
    "loss.adversarial.weight=0.5",
    "loss.adversarial.start_step=5",
    "loss.adversarial.discriminator_layers=2",
    "loss.adversarial.discriminator_channels=8",
)
CASES = {
    "group": ("loss.adversarial.discriminator_norm=group",),
    "spectral": (
        "loss.adversarial.discriminator_norm=spectral",
        "loss.adversarial.kind=non_saturating",
        "loss.adversarial.r1_weight=2",
        "loss.adversarial.r1_every=3",
    ),
}


class Noise(IndexedSource):
    """Images of noise with different brightness."""

    def __len__(self) -> int:
        return IMAGES

    def image(self, index: int) -> np.ndarray:
        draw = np.random.default_rng(index)
        return draw.normal(25 * index, 20, (16, 16, 3)).clip(0, 255).astype(np.uint8)

    def captions(self, index: int) -> list[str]:
        return ["noise"]


def settings(case: str) -> Config:
    return config.load("tiny", [*SMALL, *CASES[case]])


def make(case: str, seed: int = 0) -> AutoencoderStage:
    torch.manual_seed(seed)
    return AutoencoderStage.build(settings(case), Noise(), Accelerator(cpu=True))


def train(stage: AutoencoderStage, case: str, first: int, last: int) -> list[dict[str, float]]:
    """Return the losses of each step, averaged over all processes."""
    accelerator = stage.accelerator
    share = BatchShare(BATCH, accelerator.process_index, accelerator.num_processes)
    data, found = TrainingData(Noise(), settings(case).data, share, 0), []
    for step in range(first, last + 1):
        stage.begin(step)
        losses = stage.train_step([data[step, 0]], step).losses
        found.append({name: accelerator.reduce(loss, "mean").item() for name, loss in losses.items()})
    return found


def state(stage: AutoencoderStage) -> dict[str, Any]:
    """Return the state of training in this process."""
    with stage.averaged():
        return {name: part for name, part in stage.state().items() if name in ("networks", "optimizers", "ema")}


def course(case: str, run: Path) -> dict[str, Any]:
    """Train with a save in between, and repeat the end from that save."""
    stage = make(case)
    saver = Saver(stage, Run(run, resume=True), settings(case), Noise())
    losses = train(stage, case, 1, SAVED)
    saver.save(SAVED, {})
    losses += train(stage, case, SAVED + 1, STEPS)
    statistics = stage.finish(Noise())
    resumed = make(case, seed=1)
    step, _ = Saver(resumed, Run(run, resume=True), settings(case), Noise()).resume()
    again = train(resumed, case, step + 1, STEPS)
    return {
        "losses": losses,
        "resumed_losses": losses[:step] + again,
        "state": state(stage),
        "resumed_state": state(resumed),
        "scaling_factor": stage.average.config.scaling_factor,
        "statistics": statistics,
    }


def main(out: Path) -> None:
    torch.set_default_dtype(torch.float64)
    process = Accelerator(cpu=True).process_index
    torch.save({case: course(case, out / case) for case in CASES}, out / f"{process}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
