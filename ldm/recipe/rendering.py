"""Scenes that are rendered beside the training of the autoencoder, which needs only the first of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

from ldm.config.data import DataConfig
from ldm.data.scenes import ScenesDataset
from ldm.errors import UserError

FIRST = 20_000  # scenes that the autoencoder is trained on
SPARED = 2  # cores left to the training


def first_scenes(data: DataConfig) -> ScenesDataset:
    """The first of the scenes, rendered at once on all cores."""
    return ScenesDataset(data.scenes.model_copy(update={"num": min(FIRST, data.scenes.num)}), data.size)


class Rendering:
    """A process of its own that renders all scenes into the cache, and is ended with this one."""

    def __init__(self, data: DataConfig) -> None:
        told = data.model_dump_json()
        # With a session of its own, so that it ends together with the processes that it starts.
        self._process = subprocess.Popen([sys.executable, "-m", "ldm.recipe.rendering", told], start_new_session=True)

    def wait(self, seconds: float) -> None:
        """Until all scenes are there; TimeoutError after so many seconds."""
        try:
            status = self._process.wait(None if seconds == float("inf") else seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        if status:
            raise UserError(f"scenes could not be rendered: the process ended with status {status}, see above")

    def end(self) -> None:
        """Stop it if it has not finished."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait()


if __name__ == "__main__":
    asked = DataConfig.model_validate_json(sys.argv[1])
    os.nice(5)
    ScenesDataset(asked.scenes, asked.size, processes=max(1, (os.cpu_count() or 1) - SPARED))
