"""Directions in latents, found from two groups of images, along which another image can be moved.

The groups differ in something, such as their background. Every image is taken to the noise from which DDIM draws it
again (Song et al. 2021, section 5.3), or only part of the way there; a direction is the mean of one group's noises less
that of the other's. Moved by it, the noise of another image is drawn as one that differs from it in the same way.
What the groups have in common, and what differs between their images by chance, falls out of the means with the root
of their number: so pairs that differ in nothing else, or some dozens of images, are what finds a direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ldm.diffusion.samplers.inversion import invert
from ldm.errors import UserError
from ldm.generation.condition import joined
from ldm.generation.init_image import InitImage, fitted
from ldm.generation.request import Request
from ldm.generation.seeded_noise import SeededNoise
from ldm.generation.text_to_image import TextToImage
from ldm.storage.store import load_metadata, load_tensors, save_tensors

TOGETHER = 8  # images that are taken to noise at a time


@dataclass(frozen=True)
class InversionSettings:
    """How images are taken to noise and back; a direction is one of the way on which it was found."""

    strength: float = 0.7  # share of the steps, 1: all the way to noise
    steps: int = 30
    prompt: str = ""  # what all the images show, for a model of text

    def request(self, pipe: TextToImage, image: Image.Image) -> Request:
        """Drawing that starts from an image, without guidance, which would not lead back to it."""
        prompts = (self.prompt,) if pipe.parts.texts else ()
        if self.prompt and not prompts:
            raise UserError("this model knows no prompts: leave out what the images show")
        plain = Request(
            prompts=prompts, guidance_scale=1.0, image=image, strength=self.strength, num_inference_steps=self.steps
        )
        size = pipe.size(replace(plain, image=None, strength=None))  # what the model learned, whatever the image's
        return pipe.resolve(replace(plain, size=size))


@dataclass(frozen=True)
class Direction:
    """The difference (C, h, w) of the mean latents of two groups of images at the noisy end of a way."""

    latents: Tensor
    way: InversionSettings

    def save(self, path: Path) -> None:
        """Write it as a safetensors file, with its way as text in the header."""
        save_tensors(path, {"latents": self.latents}, {name: str(value) for name, value in asdict(self.way).items()})

    @classmethod
    def load(cls, path: Path) -> Direction:
        """What `save` wrote; UserError for another file."""
        tensors, told = load_tensors(path), load_metadata(path)
        if tensors.keys() != {"latents"} or tensors["latents"].ndim != 3:
            raise UserError(f"{path} holds no direction: make one with `ldm direction find`")
        try:
            way = InversionSettings(float(told["strength"]), int(told["steps"]), told["prompt"])
        except (KeyError, ValueError):
            raise UserError(
                f"{path} does not say how its direction was found: make one with `ldm direction find`"
            ) from None
        return cls(tensors["latents"].float(), way)


def find(
    pipe: TextToImage, first: Sequence[Image.Image], second: Sequence[Image.Image], way: InversionSettings
) -> Direction:
    """The direction from the first group of images to the second; UserError for an empty group."""
    if not first or not second:
        raise UserError("a direction is found from two groups of images: one of them has none")
    start, end = (inverted(pipe, group, way).mean(0) for group in (first, second))
    return Direction((end - start).cpu(), way)


@torch.inference_mode()
def moved(pipe: TextToImage, image: Image.Image, direction: Direction, amounts: Sequence[float]) -> list[Image.Image]:
    """The image moved by multiples of a direction; 0 gives what is left of it on the way to noise and back."""
    latents = inverted(pipe, [image], direction.way)
    if latents.shape[1:] != direction.latents.shape:
        found, own = tuple(direction.latents.shape), tuple(latents.shape[1:])
        raise UserError(f"the direction was found in latents {found}, this model's are {own}")
    request = direction.way.request(pipe, image)
    condition, _ = pipe.encode_cond_and_uncond(request.subjects, request)
    images: list[Image.Image] = []
    for amount in amounts:
        start = latents + amount * direction.latents.to(latents)
        *_, drawn = pipe.sample(request, condition, None, start, SeededNoise([0]))
        images += pipe.decode(drawn)
    return images


@torch.inference_mode()
def inverted(pipe: TextToImage, images: Sequence[Image.Image], way: InversionSettings) -> Tensor:
    """The latents (B, C, h, w) at the noisy end of a way from which DDIM draws about these images again."""
    found = []
    for first in range(0, len(images), TOGETHER):
        requests = [way.request(pipe, image) for image in images[first : first + TOGETHER]]
        grid = pipe.grid(requests[0])
        condition = joined(*(pipe.encode_cond_and_uncond(request.subjects, request)[0] for request in requests))
        latents = torch.cat([_latents(pipe, request) for request in requests])
        *_, last = invert(pipe.denoiser(condition, grid), latents, grid)
        found.append(last.x)
    return torch.cat(found)


def seen(pipe: TextToImage, image: Image.Image, way: InversionSettings) -> Image.Image:
    """What is moved of an image: its middle, in the size that the model learned."""
    return fitted(image.convert("RGB"), pipe.size(way.request(pipe, image)), scaled=True)


def _latents(pipe: TextToImage, request: Request) -> Tensor:
    """Those (1, C, h, w) of the image of a request."""
    assert request.image is not None  # `InversionSettings.request` gave it
    return InitImage(request.image, None, pipe.size(request), True, pipe.parts.autoencoder, pipe.device).latents
