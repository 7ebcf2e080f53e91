"""Generation of images from text, classes and other images."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.conditioning.size_conditioning import SizeConditioning
    from ldm.conditioning.text.composition import Composed
    from ldm.devices import find_device
    from ldm.generation.guides import ClassifierGuidance, ClipGuidance
    from ldm.generation.request import Request
    from ldm.generation.sampling import SeededNoise
    from ldm.generation.text_to_image import Progress, TextToImage

__all__ = [
    "ClassifierGuidance",
    "ClipGuidance",
    "Composed",
    "Progress",
    "Request",
    "SeededNoise",
    "SizeConditioning",
    "TextToImage",
    "find_device",
]
_modules = {
    "ClassifierGuidance": "ldm.generation.guides",
    "ClipGuidance": "ldm.generation.guides",
    "Composed": "ldm.conditioning.text.composition",
    "Progress": "ldm.generation.text_to_image",
    "Request": "ldm.generation.request",
    "SeededNoise": "ldm.generation.sampling",
    "SizeConditioning": "ldm.conditioning.size_conditioning",
    "TextToImage": "ldm.generation.text_to_image",
    "find_device": "ldm.devices",
}
__all__ = [*_modules]


def __getattr__(name: str) -> Any:
    """Import a class when it is first used, so that the command line reads the options of a request without torch."""
    if name not in _modules:
        raise AttributeError(f"module 'ldm.generation' has no attribute {name!r}")
    return getattr(importlib.import_module(_modules[name]), name)
