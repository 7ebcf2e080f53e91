"""Walks between two prompts, two seeds or two images, a frame a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from ldm.diffusion.samplers.inversion import invert
from ldm.errors import UserError
from ldm.generation import batch_size
from ldm.generation.condition import Condition, joined, mapped
from ldm.generation.init_image import InitImage
from ldm.generation.request import Request
from ldm.generation.seeded_noise import SeededNoise
from ldm.generation.sizes import latent_shape
from ldm.generation.text_to_image import TextToImage


def between_prompts(pipe: TextToImage, first: str, second: str, frames: int, request: Request) -> list[Image.Image]:
    """Conditions on the straight line from one prompt's to the other's, all from the noise of the request's seed."""
    both, negative = pipe.encode_cond_and_uncond([first, second], request)
    start, end = both.rows([0]), both.rows([1])
    conditions = [mapped(partial(torch.lerp, weight=share), start, end) for share in shares(frames)]
    noise = _noise(pipe, request.seed, request)
    return _drawn(pipe, request, conditions, negative, [noise] * frames)


def between_seeds(
    pipe: TextToImage, prompt: str, first: int, second: int, frames: int, request: Request
) -> list[Image.Image]:
    """Noises on the arc from one seed's to the other's, all of one prompt."""
    start, end = (_noise(pipe, seed, request) for seed in (first, second))
    condition, negative = pipe.encode_cond_and_uncond([prompt], request)
    return _drawn(pipe, request, [condition] * frames, negative, [slerp(start, end, share) for share in shares(frames)])


def between_images(
    pipe: TextToImage, prompt: str, first: Image.Image, second: Image.Image, frames: int, request: Request
) -> list[Image.Image]:
    """The noises that DDIM makes of two images, given a prompt, and the arc between them (Song et al. 2021, 5.3).

    Inversion and drawing go without guidance, which would not lead back to the images.
    """
    plain = replace(request, guidance_scale=1.0, sampler="ddim", eta=None)
    condition, negative = pipe.encode_cond_and_uncond([prompt], plain)
    start, end = (inverted(pipe, image, condition, plain) for image in (first, second))
    return _drawn(pipe, plain, [condition] * frames, negative, [slerp(start, end, share) for share in shares(frames)])


@torch.inference_mode()
def inverted(pipe: TextToImage, image: Image.Image, condition: Condition, request: Request) -> Tensor:
    """The noise (C, h, w) from which DDIM draws about this image again, given the condition of one image."""
    given = InitImage(image, None, pipe.size(request), True, pipe.parts.autoencoder, pipe.device, pipe.tile)
    grid = pipe.grid(request)
    *_, last = invert(pipe.denoiser(condition, grid), given.latents, grid)
    return last.x[0]


def slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """The point at `share` of the arc between two tensors of one shape (Shoemake 1985), with lengths between theirs.

    Normal noise of many dimensions lies near a sphere, which the straight line between two of its points leaves.
    """
    cosine = torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0).double().clamp(-1, 1)
    angle = cosine.acos()
    if angle.sin() < 1e-6:  # the same direction, or the opposite one, between which there is no one arc
        return torch.lerp(first, second, share)
    weights = ((1 - share) * angle).sin() / angle.sin(), (share * angle).sin() / angle.sin()
    return weights[0] * first + weights[1] * second


def shares(frames: int) -> list[float]:
    """How far each frame is on its way, from 0 to 1; UserError for fewer than two frames."""
    if frames < 2:
        raise UserError(f"{frames} frames: a walk has at least its two ends")
    return [frame / (frames - 1) for frame in range(frames)]


def _noise(pipe: TextToImage, seed: int, request: Request) -> Tensor:
    return SeededNoise([seed])(torch.empty(1, *latent_shape(pipe.parts, request)))[0]


def _drawn(
    pipe: TextToImage,
    request: Request,
    conditions: Sequence[Condition],
    negative: Condition | None,
    starts: Sequence[Tensor],
) -> list[Image.Image]:
    """An image of each condition from each start (C, h, w); a step's fresh noise is the same for all."""
    request = pipe.resolve(request)
    shape = latent_shape(pipe.parts, request)
    size = request.batch_size or batch_size.automatic(pipe.parts, shape, rows=2, reserved=pipe.pending)
    images: list[Image.Image] = []
    for first in range(0, len(starts), size):
        at = slice(first, first + size)
        start, condition = torch.stack(list(starts[at])).to(pipe.device), joined(*conditions[at])
        noise = SeededNoise([request.seed] * len(start))
        *_, latents = pipe.sample(request, condition, negative, start, noise)
        images += pipe.decode(latents)
    return images
