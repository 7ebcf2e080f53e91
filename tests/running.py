"""How tests run the command line; imported by name, because this folder is on pytest's path."""

import subprocess
from collections.abc import Callable

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
