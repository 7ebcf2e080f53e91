"""Experiment trackers, through accelerate: what is logged goes to them as well."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from ldm.config.root import Config
from ldm.config.section import dump
from ldm.errors import UserError

PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "mlflow": ("mlflow",)}


def check_trackers(names: Sequence[str]) -> None:
    """UserError for a tracker whose package is not installed."""
    for name in names:
        if not any(importlib.util.find_spec(package) for package in PACKAGES[name]):
            raise UserError(f"training.trackers names {name}, which is not installed: pip install {PACKAGES[name][0]}")


class Trackers:
    """The trackers that the accelerator was started with, told of the configuration; perhaps none."""

    def __init__(self, accelerator: Accelerator, config: Config) -> None:
        self.accelerator = accelerator
        self._any = bool(config.training.trackers)
        if self._any:
            accelerator.init_trackers("ldm", config={"config": dump(config)})

    def log(self, facts: dict[str, Any]) -> None:
        """Record the numbers of a step, which they name as `step`."""
        if self._any:
            numbers = {name: value for name, value in facts.items() if isinstance(value, int | float)}
            values = {name: value for name, value in numbers.items() if name != "step"}
            self.accelerator.log(values, step=facts["step"])

    def image(self, image: Image.Image, step: int) -> None:
        """Record the sample grid of a step."""
        for tracker in self.accelerator.trackers if self._any else ():
            if tracker.name == "mlflow":
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / f"step-{step:06d}.png"
                    image.save(path)
                    tracker.log_artifact(str(path), "samples")
            elif tracker.name == "tensorboard":
                tracker.log_images({"samples": np.asarray(image)[None]}, step=step, dataformats="NHWC")
            else:
                tracker.log_images({"samples": [image]}, step=step)
