"""Text to image, and what begins with an image."""

from ldm.conditioning.text.composition import Composed
from ldm.devices import find_device
from ldm.generation.guides import ClassifierGuidance, ClipGuidance
from ldm.generation.request import Request, SizeConditioning
from ldm.generation.seeded_noise import SeededNoise
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
