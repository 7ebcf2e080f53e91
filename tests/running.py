"""How tests run the command line; imported by name, because this folder is on pytest's path."""

import subprocess
from collections.abc import Callable

Command = Callable[..., subprocess.CompletedProcess[str]]

# What makes a run of `tiny` a matter of seconds.
SMALL = ("--batch-size", 8, "--set", "data.scenes.num=64")
