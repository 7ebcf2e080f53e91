"""The folder of cached files."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache() -> Path:
    """Return `$LDM_CACHE`, by default `~/.cache/ldm`."""
    return Path(os.environ.get("LDM_CACHE") or Path.home() / ".cache" / "ldm")
