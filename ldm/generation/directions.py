"""Directions in latents: the difference between two groups of images, applied to other images.

Each image of both groups is inverted by DDIM to noise (Song et al. 2021, section 5.3), or only a part of the way. A
direction is the mean of one group's noises minus the mean of the other's. Another image is moved by adding the
direction to its noise and sampling back. What both groups have in common cancels, and random differences between
their images decrease with the square root of their number: a direction needs pairs that differ in nothing else, or some
dozens of images.
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
from ldm.generation.init_image import InitImage, fitted
from ldm.generation.request import Request
from ldm.generation.sampling import SeededNoise, conditional_denoiser, finite_steps
from ldm.generation.text_to_image import TextToImage
from ldm.storage.store import load_metadata, load_tensors, save_tensors

TOGETHER = 8  # images that are inverted at a time


@dataclass(frozen=True)
class InversionSettings:
    """Settings of DDIM inversion; a direction is applied with the settings that it was found with."""

    strength: float = 0.7  # share of the steps; 1: all the way to noise
    steps: int = 30
    prompt: str = ""  # a description of all images, for a text-to-image model

    def request(self, pipe: TextToImage, image: Image.Image) -> Request:
        """Return a request that starts from an image, without guidance, which would not lead back to it."""
        prompts = (self.prompt,) if "text" in pipe.pipeline.conditionings else ()
        if self.prompt and not prompts:
            raise UserError(f"this model takes no prompts: leave out the prompt {self.prompt!r}")
        plain = Request(
            prompts=prompts, guidance_scale=1.0, image=image, strength=self.strength, num_inference_steps=self.steps
        )
        size = pipe.size(replace(plain, image=None, strength=None))  # the model's, not the image's
        return pipe.resolve(replace(plain, size=size))


@dataclass(frozen=True)
class Direction:
    """The difference (C, h, w) between the mean noises of two groups of images."""

    latents: Tensor
    settings: InversionSettings

    def save(self, path: Path) -> None:
        """Save a safetensors file with the settings as text in its header."""
        settings = {name: str(value) for name, value in asdict(self.settings).items()}
        save_tensors(path, {"latents": self.latents}, settings)

    @classmethod
    def load(cls, path: Path) -> Direction:
        """Load what `save` wrote.

        Raises:
            UserError: for another file.
        """
        tensors, header = load_tensors(path), load_metadata(path)
        if tensors.keys() != {"latents"} or tensors["latents"].ndim != 3:
            raise UserError(f"{path} contains no direction: make one with `ldm direction find`")
        try:
            settings = InversionSettings(float(header["strength"]), int(header["steps"]), header["prompt"])
        except (KeyError, ValueError):
            raise UserError(
                f"{path} has no strength, steps and prompt in its header: make it with `ldm direction find`"
            ) from None
        return cls(tensors["latents"].float(), settings)


def find(
    pipe: TextToImage, first: Sequence[Image.Image], second: Sequence[Image.Image], settings: InversionSettings
) -> Direction:
    """Find the direction from the first group of images to the second.

    Raises:
        UserError: for an empty group.
    """
    if not first or not second:
        raise UserError(f"the groups have {len(first)} and {len(second)} images: a direction needs one or more in each")
    start, end = (inverted(pipe, group, settings).mean(0) for group in (first, second))
    return Direction((end - start).cpu(), settings)


@torch.inference_mode()
def moved(pipe: TextToImage, image: Image.Image, direction: Direction, amounts: Sequence[float]) -> list[Image.Image]:
    """Move an image by multiples of a direction; 0 reconstructs the image by inversion and sampling."""
    latents = inverted(pipe, [image], direction.settings)
    if latents.shape[1:] != direction.latents.shape:
        found, own = tuple(direction.latents.shape), tuple(latents.shape[1:])
        raise UserError(f"the direction has latents {found}, this model {own}: find it with this model")
    request = direction.settings.request(pipe, image)
    grid = pipe.grid(request)
    condition, _ = pipe.encode_cond_and_uncond(request.subjects, request)
    images: list[Image.Image] = []
    for amount in amounts:
        start = latents + amount * direction.latents.to(latents)
        *_, last = pipe.sample(request, grid, condition, None, start, SeededNoise([0]))
        images += pipe.decode(last.x)
    return images


@torch.inference_mode()
def inverted(pipe: TextToImage, images: Sequence[Image.Image], settings: InversionSettings) -> Tensor:
    """Return the noises (B, C, h, w) from which DDIM generates about these images."""
    noises = []
    for first in range(0, len(images), TOGETHER):
        requests = [settings.request(pipe, image) for image in images[first : first + TOGETHER]]
        grid = pipe.grid(requests[0])
        conditions = [pipe.encode_cond_and_uncond(request.subjects, request)[0] for request in requests]
        latents = torch.cat([_latents(pipe, request) for request in requests])
        steps = invert(conditional_denoiser(pipe, grid, 1, None, *conditions), latents, grid)
        *_, last = finite_steps(steps, pipe, None)
        noises.append(last.x)
    return torch.cat(noises)


def cropped(pipe: TextToImage, image: Image.Image, settings: InversionSettings) -> Image.Image:
    """Crop and scale an image as it is moved: to the model's size."""
    return fitted(image.convert("RGB"), pipe.size(settings.request(pipe, image)), scaled=True)


def _latents(pipe: TextToImage, request: Request) -> Tensor:
    """Encode the image of a request: (1, C, h, w)."""
    assert request.image is not None  # `InversionSettings.request` sets it
    return InitImage(request.image, None, pipe.size(request), True, pipe.pipeline.autoencoder, pipe.device).latents
