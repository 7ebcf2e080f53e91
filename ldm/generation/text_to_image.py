"""Text to image: request -> conditions -> guided denoiser -> sampler over levels -> latents -> images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ldm.checkpoint.diffusers.pipeline import load_pipeline, save_pipeline
from ldm.checkpoint.find import find_model
from ldm.checkpoint.pipeline import Pipeline
from ldm.checkpoint.vae import with_autoencoder
from ldm.conditioning.conditions import Conditions
from ldm.conditioning.text.composition import Composed, Prompt, spread
from ldm.data.images import to_bytes
from ldm.devices import computes_bfloat16, find_device, warn_of_slow_dtype
from ldm.diffusion.clipping import configured
from ldm.diffusion.level import Grid
from ldm.diffusion.prediction import make_prediction
from ldm.diffusion.samplers import make_sampler
from ldm.diffusion.samplers.step import Step
from ldm.diffusion.schedule import make_schedule
from ldm.errors import UserError
from ldm.generation import batch_size
from ldm.generation.cuda_graphs import require_gpu
from ldm.generation.guides import resolve_guides
from ldm.generation.init_image import InitImage, make_init_image
from ldm.generation.masks import warn_of_constant
from ldm.generation.option import takes_fields
from ldm.generation.prepared_cache import PreparedCache
from ldm.generation.quality import complete
from ldm.generation.request import Request, Subject
from ldm.generation.sampling import SeededNoise, finite_steps, guided_denoiser
from ldm.generation.sizes import image_size, latent_shape
from ldm.models import tiling
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.unet.unet import UNet
from ldm.storage.weights import SHARD_SIZE

Progress = Callable[[int, int], None]  # (steps done, steps in total), over all batches


class TextToImage:
    """A trained pipeline that generates images from prompts, classes, other images, or unconditionally."""

    def __init__(
        self, pipeline: Pipeline, tile: int | None = None, prepare: bool = True, compiled: bool = False
    ) -> None:
        """Take a pipeline, which must be on one device, and switch them to evaluation mode.

        Args:
            tile: side in pixels of the autoencoder's tiles; 0: whole images; None: tiles for large images only.
            prepare: generate by copies of the networks that are prepared for inference (`prepare_for_sampling`).
            compiled: for GPUs: compile the blocks of the copies and replay steps as CUDA graphs. The first images of
                a size take a minute longer, all others are faster.

        Raises:
            UserError: if the autoencoder does not support the tile's side.
        """
        if tile is not None:
            tiling.tiling_of(pipeline.autoencoder, tiling.WHOLE, tile)
        self.pipeline, self.tile = replace(pipeline, tile=tile), tile
        self.prepared_unet = PreparedCache[UNet](prepare, compiled)
        self.prepared_autoencoder = PreparedCache[Autoencoder](prepare, compiled)
        self.schedule = make_schedule(pipeline.diffusion.schedule)
        self.prediction = make_prediction(pipeline.diffusion.prediction)
        for network in pipeline.modules.values():
            network.eval()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path = "emoji",
        dtype: torch.dtype = torch.float32,
        device: str | torch.device | None = None,
        tile: int | None = None,
        prepare: bool = True,
        compiled: bool = False,
        vae: str | Path | None = None,
    ) -> TextToImage:
        """Load a run, a directory in diffusers layout, a Hub id or a built-in model, by default to a GPU if any.

        `tile`, `prepare` and `compiled` as in the constructor; `vae`: a model whose autoencoder replaces the own one.
        Raise UserError if a model or the device is missing, a file is damaged, or `compiled` is given without a GPU.
        """
        place = find_device(device)
        if compiled:
            require_gpu(place)
        warn_of_slow_dtype(dtype, place)
        pipeline = load_pipeline(find_model(path), dtype)
        pipeline = pipeline if vae is None else with_autoencoder(pipeline, vae, dtype)
        return cls(pipeline, tile, prepare, compiled).to(place)

    def save_pretrained(
        self, path: str | Path, dtype: torch.dtype | None = None, max_shard_size: int = SHARD_SIZE
    ) -> None:
        """Save in diffusers layout, with weights in `dtype` and files of at most `max_shard_size` bytes."""
        save_pipeline(self.pipeline, Path(path), dtype, max_shard_size)

    def to(self, device: str | torch.device) -> TextToImage:
        """Move all networks to a device."""
        for network in self.pipeline.modules.values():
            network.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return self.pipeline.device

    @property
    def pending(self) -> int:
        """Bytes that prepared networks, which are made when they are first used, will need."""
        unet, autoencoder = self.pipeline.denoiser, self.pipeline.autoencoder
        return self.prepared_unet.pending(unet) + self.prepared_autoencoder.pending(autoencoder)

    @takes_fields(Request, besides=["prompts"])
    def __call__(
        self,
        prompt: Prompt | Sequence[Prompt] = (),
        *,
        latents: Tensor | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[Image.Image]:
        """Generate `num_images` images for each prompt or class, grouped by prompt.

        Args:
            latents: (images, C, h, w), initial noise in place of the seeds; its shape decides the size.
            progress: called with steps done and steps in total.
            options: fields of `Request`.

        Raises:
            UserError: for invalid options, and for options that the model does not support.
        """
        options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
        if isinstance(options.get("classes"), int | str):
            options["classes"] = (options["classes"],)
        prompts = (prompt,) if isinstance(prompt, str | Composed) else tuple(prompt)
        return list(self.generate(self.resolve(Request(prompts=prompts, **options)), latents, progress))

    def resolve(self, request: Request) -> Request:
        """Check a request against the model and fill in what it leaves open.

        Raises:
            UserError: for options that the model does not support.
        """
        if request.mask is not None:
            warn_of_constant(request.mask)
        if request.clip is not None and request.dtype not in (None, self.pipeline.denoiser.dtype):
            raise UserError(f"CLIP guidance needs gradients of the model in its own dtype: load it in {request.dtype}")
        resolved = resolve_guides(request, self.pipeline) if request.needs_gradients else self.pipeline.resolve(request)
        return complete(resolved, torch.bfloat16 if computes_bfloat16(self.device) else None)

    def grid(self, request: Request) -> Grid:
        """Return the levels at which the sampler of a resolved request calls the network."""
        if request.timesteps is not None:
            grid = self.schedule.grid_at(request.timesteps)
        else:
            assert request.num_inference_steps is not None, "resolve the request first"
            grid = self.schedule.grid(request.num_inference_steps, request.spacing)
        if request.image is None or request.strength is None:
            return grid
        steps = min(int(len(grid) * request.strength), len(grid))  # as diffusers counts them
        if steps < 1:
            raise UserError(f"strength {request.strength:g} of {len(grid)} steps is less than one step: raise either")
        return grid.last(steps)

    def size(self, request: Request) -> tuple[int, int]:
        """Return width and height in pixels of a request's images; an input image is cropped to a supported size."""
        return image_size(self.pipeline, request)

    def generate(
        self,
        request: Request,
        latents: Tensor | None = None,
        progress: Progress | None = None,
        numbers: Sequence[int] | None = None,
    ) -> Iterator[Image.Image]:
        """Yield a resolved request's images `numbers`, by default all, as each batch is done; check it at once."""
        grid, shape = self.grid(request), latent_shape(self.pipeline, request, latents)
        init = None
        if request.image is not None:
            autoencoder = self.prepared_autoencoder.get(self.pipeline.autoencoder)
            init = make_init_image(request, self.pipeline, autoencoder, self.size(request), self.tile)
        batch = partial(self._generate_batch, request, grid, shape, latents, init)
        chosen = list(range(len(request.images)) if numbers is None else numbers)
        batches = [chosen] if len(chosen) == 1 else batch_size.batches(self, request, shape, chosen)
        return self._generate(batch, batches, len(grid), request, progress)

    def _generate(
        self,
        batch: Callable[[Callable[[int], None], list[int]], list[Image.Image]],
        waiting: list[list[int]],
        steps: int,
        request: Request,
        progress: Progress | None,
    ) -> Iterator[Image.Image]:
        """Yield the images of batches of indices, halving batches that do not fit the memory."""
        done = 0

        def report(step: int) -> None:
            if progress is not None:
                progress(done + step, done + len(waiting) * steps)

        while waiting:
            images = None
            try:
                images = batch(report, waiting[0])
            except RuntimeError as error:
                batch_size.check_out_of_memory(error, len(waiting[0]), request)
            if images is None:  # only now are the tensors of the failed batch unreferenced
                waiting = batch_size.halved(waiting)
                continue
            waiting, done = waiting[1:], done + steps
            yield from images

    def _generate_batch(
        self,
        request: Request,
        grid: Grid,
        shape: tuple[int, int, int],
        latents: Tensor | None,
        init: InitImage | None,
        report: Callable[[int], None],
        numbers: list[int],
    ) -> list[Image.Image]:
        subjects, seeds = zip(*(request.images[number] for number in numbers), strict=True)
        noise = SeededNoise(seeds)
        start = torch.empty(len(seeds), *shape, device=self.device)
        start = noise(start) if latents is None else latents[numbers].to(start)
        start = grid.initial_scale * start if init is None else init.noisy(grid, start)
        condition, negative = self.encode_cond_and_uncond(spread(subjects)[0], request, shape)
        with torch.no_grad() if request.needs_gradients else torch.inference_mode():
            steps = self.sample(request, grid, condition, negative, start, noise, init, subjects)
            for number, step in enumerate(steps, start=1):
                x = step.x
                report(number)
        images = self.decode(x, request.dtype)
        return images if init is None else [init.restore(image) for image in images]

    @torch.inference_mode()
    def encode_cond_and_uncond(
        self, subjects: Sequence[Subject], request: Request, shape: tuple[int, int, int] | None = None
    ) -> tuple[Conditions, Conditions | None]:
        """Encode the conditions of subjects, and that to guide away from (of one image), if any.

        `shape` (C, h, w) of the latents is by default the request's.
        """
        _, height, width = shape or latent_shape(self.pipeline, request)
        factor = self.pipeline.autoencoder.config.downsampling_factor
        return self.pipeline.encode_cond_and_uncond(subjects, request, (width * factor, height * factor))

    def sample(
        self,
        request: Request,
        grid: Grid,
        condition: Conditions,
        negative: Conditions | None,
        start: Tensor,
        noise: SeededNoise,
        init: InitImage | None = None,
        subjects: Sequence[Subject] = (),
    ) -> Iterator[Step]:
        """Sample latents of B images from `start` (B, C, h, w), in float32 whatever the dtype of the networks.

        Iterate in inference mode, but with `request.needs_gradients` in `torch.no_grad`: gradients cannot pass through
        tensors made in inference mode.

        Args:
            condition: of the B images; composed subjects have several rows.
            negative: of one image; None: no guidance by conditions.
            subjects: of the B images, for composition and for guidance by a classifier or by CLIP.
        """
        negative = None if negative is None else negative.expand(len(start))
        mixture = spread(subjects)[1]
        denoiser = guided_denoiser(self, request, grid, condition, negative, subjects, noise.seeds, mixture)
        if init is not None:
            denoiser = init.keep(denoiser)
        denoiser = configured(denoiser, self.pipeline.diffusion, grid)
        assert request.sampler is not None, "resolve the request first"
        steps = make_sampler(request.sampler, request.eta)(denoiser, start, grid, noise)
        return finite_steps(steps, self, request.dtype)

    @torch.inference_mode()
    def decode(self, latents: Tensor, dtype: torch.dtype | None = None) -> list[Image.Image]:
        """Decode latents (B, C, h, w) to images, in the autoencoder's or another dtype.

        Raises:
            NonFiniteError: if the output is not finite.
        """
        autoencoder = self.prepared_autoencoder.get(self.pipeline.autoencoder, dtype)
        return [Image.fromarray(image) for image in to_bytes(tiling.decode(autoencoder, latents, self.tile))]
