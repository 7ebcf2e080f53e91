"""Interpolation between two prompts, two seeds or two images, in a number of frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from ldm.conditioning.conditions import Conditions
from ldm.diffusion.samplers.inversion import invert
from ldm.errors import UserError
from ldm.generation import batch_size
from ldm.generation.init_image import InitImage
from ldm.generation.request import Request
from ldm.generation.sampling import SeededNoise, conditional_denoiser, finite_steps
from ldm.generation.sizes import latent_shape
from ldm.generation.text_to_image import TextToImage


def between_prompts(pipe: TextToImage, first: str, second: str, frames: int, request: Request) -> list[Image.Image]:
    """Interpolate the conditions of two prompts linearly, all with the noise of the request's seed."""
    request = pipe.resolve(replace(request, prompts=(first, second)))
    both, negative = pipe.encode_cond_and_uncond([first, second], request)
    start, end = both.rows([0]), both.rows([1])
    conditions = [start.lerp(end, share) for share in shares(frames)]
    noise = _noise(pipe, request.seed, request)
    return _generate(pipe, request, conditions, negative, [noise] * frames)


def between_seeds(
    pipe: TextToImage, prompt: str, first: int, second: int, frames: int, request: Request
) -> list[Image.Image]:
    """Interpolate the noise of two seeds on the arc between them, all with one prompt."""
    request = pipe.resolve(replace(request, prompts=(prompt,)))
    start, end = (_noise(pipe, seed, request) for seed in (first, second))
    condition, negative = pipe.encode_cond_and_uncond([prompt], request)
    starts = [slerp(start, end, share) for share in shares(frames)]
    return _generate(pipe, request, [condition] * frames, negative, starts)


def between_images(
    pipe: TextToImage, prompt: str, first: Image.Image, second: Image.Image, frames: int, request: Request
) -> list[Image.Image]:
    """Interpolate between two images on the arc between their noises by DDIM inversion (Song et al. 2021, 5.3).

    Inversion and sampling run without guidance, which would not lead back to the images.
    """
    plain = replace(request, prompts=(prompt,), guidance_scale=1.0, sampler="ddim", eta=None)
    request = pipe.resolve(plain)
    condition, negative = pipe.encode_cond_and_uncond([prompt], request)
    start, end = (inverted(pipe, image, condition, request) for image in (first, second))
    starts = [slerp(start, end, share) for share in shares(frames)]
    return _generate(pipe, request, [condition] * frames, negative, starts)


@torch.inference_mode()
def inverted(pipe: TextToImage, image: Image.Image, condition: Conditions, request: Request) -> Tensor:
    """Return the noise (C, h, w) from which DDIM generates about this image, given the condition of one image."""
    autoencoder, grid = pipe.pipeline.autoencoder, pipe.grid(request)
    init = InitImage(image, None, pipe.size(request), True, autoencoder, pipe.device, pipe.tile)
    steps = invert(conditional_denoiser(pipe, grid, 1, None, condition), init.latents, grid)
    *_, last = finite_steps(steps, pipe, None)
    return last.x[0]


def slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Interpolate two tensors on the arc between them, with lengths between theirs (Shoemake 1985).

    Normal noise of many dimensions is near a sphere, which a straight line between two points leaves.
    """
    cosine = torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0).double().clamp(-1, 1)
    angle = cosine.acos()
    if angle.sin() < 1e-6:  # equal or opposite directions, between which the arc is not unique
        return torch.lerp(first, second, share)
    weights = ((1 - share) * angle).sin() / angle.sin(), (share * angle).sin() / angle.sin()
    return weights[0] * first + weights[1] * second


def shares(frames: int) -> list[float]:
    """Return the positions of frames from 0 to 1.

    Raises:
        UserError: for fewer than two frames.
    """
    if frames < 2:
        raise UserError(f"frames is {frames}: it must be at least 2, the two ends")
    return [frame / (frames - 1) for frame in range(frames)]


def _noise(pipe: TextToImage, seed: int, request: Request) -> Tensor:
    return SeededNoise([seed])(torch.empty(1, *latent_shape(pipe.pipeline, request)))[0]


@torch.inference_mode()
def _generate(
    pipe: TextToImage,
    request: Request,
    conditions: Sequence[Conditions],
    negative: Conditions | None,
    starts: Sequence[Tensor],
) -> list[Image.Image]:
    """Generate an image for each condition and start (C, h, w); a step adds the same fresh noise to all."""
    grid, shape = pipe.grid(request), latent_shape(pipe.pipeline, request)
    size = request.batch_size or batch_size.automatic(pipe.pipeline, shape, rows=2, reserved=pipe.pending)
    images: list[Image.Image] = []
    for first in range(0, len(starts), size):
        at = slice(first, first + size)
        start, condition = torch.stack(list(starts[at])).to(pipe.device), Conditions.cat(conditions[at])
        noise = SeededNoise([request.seed] * len(start))
        *_, last = pipe.sample(request, grid, condition, negative, start, noise)
        images += pipe.decode(last.x)
    return images
