"""The images of a request, batch by batch, with smaller batches where memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from ldm.conditioning.text.composition import Composed, spread
from ldm.diffusion.level import Grid
from ldm.errors import UserError
from ldm.generation import batch_size
from ldm.generation.init_image import InitImage
from ldm.generation.request import Request, Subject
from ldm.generation.seeded_noise import SeededNoise

if TYPE_CHECKING:
    from ldm.generation.text_to_image import TextToImage

Progress = Callable[[int, int], None]  # (steps done, steps in all), over all batches


@dataclass(frozen=True)
class Drawing:
    """A resolved request and all that its batches have in common."""

    pipe: TextToImage
    request: Request
    grid: Grid
    shape: tuple[int, int, int]  # of an image's latents, (C, h, w)
    latents: Tensor | None  # to start from, of all images
    given: InitImage | None
    progress: Progress | None

    def images(self, numbers: Sequence[int]) -> Iterator[Image.Image]:
        """Those of `request.images` with these numbers, in order; UserError where not even one fits the memory."""
        done, waiting = 0, batch_size.split(numbers, self._size(numbers), self._length)
        with torch.inference_mode():
            beside = self.pipe.spatial_input(self.request, self._pixels)
        while waiting:
            chosen, *rest = waiting
            told = partial(self._tell, done, done + len(waiting) * len(self.grid))
            images = batch_size.unless_full(partial(self._batch, told, beside, chosen))
            if images is None:
                half = self._fewer(len(chosen))
                waiting = [part for batch in waiting for part in batch_size.split(batch, half, lambda number: 0)]
                continue
            waiting, done = rest, done + len(self.grid)
            yield from images

    def _size(self, numbers: Sequence[int]) -> int:
        if self.request.batch_size is not None:
            return self.request.batch_size
        images = self.request.images
        rows = max((_rows(images[number][0], self.request) for number in numbers), default=1)
        backward = self.request.clip is not None
        return batch_size.automatic(self.pipe.parts, self.shape, rows, backward, self.pipe.pending)

    def _length(self, number: int) -> int:
        return self.pipe.conditioner.length(self.request.images[number][0], self.request)

    @property
    def _pixels(self) -> tuple[int, int]:
        """Width and height."""
        factor = self.pipe.parts.autoencoder.config.downsampling_factor
        return self.shape[2] * factor, self.shape[1] * factor

    def _batch(self, told: Callable[[int], None], beside: Tensor | None, numbers: list[int]) -> list[Image.Image]:
        """Images that are drawn together; what is random in them begins anew at each call."""
        subjects, seeds = zip(*(self.request.images[number] for number in numbers), strict=True)
        noise = SeededNoise(seeds)
        start = torch.empty(len(seeds), *self.shape, device=self.pipe.device)
        start = noise(start) if self.latents is None else self.latents[numbers].to(start)
        start = self.grid.initial_scale * start if self.given is None else self.given.noisy(self.grid, start)
        with torch.inference_mode():
            rows, _ = spread(subjects)
            condition, negative = self.pipe.conditioner.encode_cond_and_uncond(rows, self.request, self._pixels)
            condition, negative = condition.beside(beside, len(rows)), negative and negative.beside(beside)
        steps = self.pipe.sample(self.request, condition, negative, start, noise, self.given, subjects)
        for step, x in enumerate(steps, start=1):  # noqa: B007
            told(step)
        images = self.pipe.decode(x, self.request.dtype)
        return images if self.given is None else [self.given.restore(image) for image in images]

    def _tell(self, done: int, total: int, step: int) -> None:
        if self.progress:
            self.progress(done + step, total)

    def _fewer(self, count: int) -> int:
        """Half of a batch that did not fit; UserError where it cannot or shall not be made smaller."""
        if self.request.batch_size is not None and count > 1:
            raise UserError(
                f"{count} images at a time do not fit the memory: give a smaller batch size, or leave it out"
            )
        if count == 1:
            _, height, width = self.shape
            raise UserError(f"latents of {width}x{height} do not fit the memory: draw smaller images, or in bfloat16")
        return count // 2


def _rows(subject: Subject, request: Request) -> int:
    """How many rows of the U-Net's batch an image takes: one a text, and one for what is guided away from."""
    if isinstance(subject, Composed):
        return len(subject.parts) + 1
    return 1 if request.guidance_scale == 1 else 2
