"""Experiment trackers of accelerate, which receive what is logged."""

from __future__ import annotations

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


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError for a tracker that accelerate does not have or whose package is not installed."""
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known = [str(name) for name in LOGGER_TYPE_TO_CLASS]
    installed = [str(name) for name in get_available_trackers()]
    for name in names:
        if name not in known:
            raise UserError(f"training.trackers: unknown tracker {name!r}; accelerate has {', '.join(known)}")
        if name not in installed:
            raise UserError(f"training.trackers: {name} is not installed: pip install {name.replace('_', '-')}")


class Trackers:
    """The trackers that the accelerator was started with, perhaps none."""

    def __init__(self, accelerator: Accelerator, config: Config) -> None:
        self.accelerator, self._any = accelerator, bool(config.training.trackers)
        if self._any:
            accelerator.init_trackers("ldm", config={"config": dump(config)})

    def log(self, facts: dict[str, Any]) -> None:
        """Record the numbers among the facts of step `facts["step"]`."""
        if self._any:
            numbers = {name: value for name, value in facts.items() if isinstance(value, int | float)}
            self.accelerator.log({name: value for name, value in numbers.items() if name != "step"}, step=facts["step"])

    def image(self, image: Image.Image, step: int) -> None:
        """Record the sample grid of a step, as an image or as a file."""
        for tracker in self.accelerator.trackers if self._any else ():
            if tracker.name == "tensorboard":
                tracker.log_images({"samples": np.asarray(image)[None]}, step=step, dataformats="NHWC")
            elif hasattr(tracker, "log_images"):
                tracker.log_images({"samples": [image]}, step=step)
            elif hasattr(tracker, "log_artifact"):
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / f"step-{step:06d}.png"
                    image.save(path)
                    tracker.log_artifact(str(path), "samples")
