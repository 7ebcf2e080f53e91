"""How tests run the command line and read what it wrote."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

Command = Callable[..., subprocess.CompletedProcess[str]]

# Code of a function that returns the peak memory of its process in bytes; getrusage would include the parent's.
PEAK = """
def peak():
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
"""

# Options for runs of `tiny` that take seconds.
SMALL = ("--batch-size", 8, "--set", "data.scenes.num=64")


def overrides(*options: str) -> list[str]:
    """Put `--set` before each option."""
    return [word for option in options for word in ("--set", option)]


def here(*words: object) -> None:
    """Run a command in this process, which saves the seconds that a new process takes to start."""
    from ldm.cli.main import app

    app([str(word) for word in words], standalone_mode=False, prog_name="ldm")


def losses(run: Path) -> list[float]:
    rows = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]  # other rows record saves
