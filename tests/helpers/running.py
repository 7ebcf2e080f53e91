"""How tests run the command line and read what it wrote."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

Command = Callable[..., subprocess.CompletedProcess[str]]

# Code of a function that gives the peak memory of its process in bytes; getrusage's includes that of its parent.
PEAK = """
def peak():
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
"""

# What makes a run of `tiny` a matter of seconds.
SMALL = ("--batch-size", 8, "--set", "data.scenes.num=64")


def overrides(*options: str) -> list[str]:
    """`--set` before each option."""
    return [word for option in options for word in ("--set", option)]


def here(*words: object) -> None:
    """Run a command in this process, which saves the seconds that a new process takes to start."""
    from ldm.cli.main import app

    app([str(word) for word in words], standalone_mode=False, prog_name="ldm")


def losses(run: Path) -> list[float]:
    rows = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]  # the others tell of saves
