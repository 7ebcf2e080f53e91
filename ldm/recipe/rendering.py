"""Render scenes while the autoencoder, which needs only the first of them, is trained."""

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
    """Render the first scenes on all cores."""
    return ScenesDataset(data.scenes.model_copy(update={"num": min(FIRST, data.scenes.num)}), data.size)


class Rendering:
    """A process that renders all scenes into the cache."""

    def __init__(self, data: DataConfig) -> None:
        fields = data.model_dump_json()
        # A new session, so that the processes that it starts can be ended with it.
        self._process = subprocess.Popen([sys.executable, "-m", "ldm.recipe.rendering", fields], start_new_session=True)

    def wait(self, seconds: float) -> None:
        """Wait until all scenes are rendered.

        Raises:
            TimeoutError: after `seconds`.
        """
        try:
            status = self._process.wait(None if seconds == float("inf") else seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        if status:
            raise UserError(f"scenes could not be rendered: the process ended with status {status}, see above")

    def end(self) -> None:
        """End the process if it has not finished."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait()


if __name__ == "__main__":
    asked = DataConfig.model_validate_json(sys.argv[1])
    os.nice(5)
    ScenesDataset(asked.scenes, asked.size, processes=max(1, (os.cpu_count() or 1) - SPARED))
