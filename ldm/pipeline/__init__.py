"""Text to picture, and what begins with a picture."""

from ldm.devices import find_device
from ldm.pipeline.composition import Composed
from ldm.pipeline.guides import ClassifierGuidance, ClipGuidance
from ldm.pipeline.noise import SeededNoise
from ldm.pipeline.request import Framing, Request
from ldm.pipeline.text_to_image import Progress, TextToImage

__all__ = [
    "ClassifierGuidance",
    "ClipGuidance",
    "Composed",
    "Framing",
    "Progress",
    "Request",
    "SeededNoise",
    "TextToImage",
    "find_device",
]
