"""Latent text-to-image diffusion: train an autoencoder and a U-Net on your own images, and generate."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.generation import TextToImage
    from ldm.models.autoencoder.autoencoder import Autoencoder
    from ldm.models.unet.unet import UNet

__all__ = ["Autoencoder", "TextToImage", "UNet"]
__version__ = "0.1.0"

# In a checkout `ldm.cli`, `ldm.configs` and `ldm.weights` are siblings of this folder, not part of it.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "cli").is_dir():
    __path__.append(str(_checkout))

_rooms = {
    "Autoencoder": "ldm.models.autoencoder.autoencoder",
    "TextToImage": "ldm.generation",
    "UNet": "ldm.models.unet.unet",
}


def __getattr__(name: str) -> Any:
    """Import the public classes on first access, so that `import ldm` is fast."""
    if name in _rooms:
        return getattr(importlib.import_module(_rooms[name]), name)
    raise AttributeError(f"module 'ldm' has no attribute {name!r}")
