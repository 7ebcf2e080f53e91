"""Where what was made or counted once is kept."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache() -> Path:
    """`$LDM_CACHE`, else `~/.cache/ldm`."""
    return Path(os.environ.get("LDM_CACHE") or Path.home() / ".cache" / "ldm")
