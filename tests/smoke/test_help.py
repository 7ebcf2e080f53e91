"""The help of each command fits a terminal of 80 columns."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("command", ["generate", "train-unet", "info"])
def test_no_help_text_is_cut_at_80_columns(command: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "ldm", command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "80"},
    )
    assert "--" in result.stdout
    assert "…" not in result.stdout
