"""Text to picture: prompt -> context -> guided denoiser -> sampler over levels -> latents -> picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ldm.checkpoint.diffusers import Parts, load_pipeline, resolve, save_pipeline
from ldm.diffusion.denoiser import Denoiser, make_denoiser
from ldm.diffusion.grids import check_spacing, check_timesteps
from ldm.diffusion.guidance import classifier_free
from ldm.diffusion.level import Grid
from ldm.diffusion.posterior import Posteriors
from ldm.diffusion.prediction import Prediction
from ldm.diffusion.samplers import make_sampler
from ldm.diffusion.schedule import make_schedule
from ldm.errors import UserError

Progress = Callable[[int, int], None]  # (steps done, steps in all), over all batches


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to draw: `num_images` pictures of each prompt; raises UserError for values that mean nothing.

    The pictures have the seeds `seed`, `seed + 1`, ... in order. A picture depends on its prompt and its seed, not on
    what is drawn beside it.
    """

    prompts: tuple[str, ...]
    negative_prompt: str = ""
    guidance_scale: float = 3.0  # 1: off
    guidance_rescale: float = 0.0  # 0: off (Lin et al. 2024, section 3.4)
    num_inference_steps: int = 30
    spacing: str | None = None  # of the levels that are visited; None: the model's own
    timesteps: tuple[float, ...] | None = None  # these levels, falling, instead of a number and a spacing
    num_images: int = 1
    seed: int = 0
    sampler: str = "ddim"
    eta: float | None = None  # for ddim alone; None: that of the sampler
    size: tuple[int, int] | None = None  # width, height in pixels; None: what the model was trained on
    batch_size: int = 8  # pictures drawn at a time

    def __post_init__(self) -> None:
        make_sampler(self.sampler, self.eta)
        self._check_levels()
        if not self.prompts:
            raise UserError("there is no prompt to draw")
        for name in ("num_inference_steps", "num_images", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if not 0 <= self.seed <= 2**63 - len(self.prompts) * self.num_images:
            raise UserError(f"seed {self.seed} is not between 0 and 2^63 - 1")
        if not math.isfinite(self.guidance_scale):
            raise UserError(f"guidance scale {self.guidance_scale} is not a number to multiply by")
        if self.guidance_scale == 1 and self.negative_prompt:
            raise UserError("a negative prompt needs guidance: give a guidance scale other than 1, which is off")
        if not 0 <= self.guidance_rescale <= 1:
            raise UserError(f"guidance_rescale {self.guidance_rescale} is not between 0 (off) and 1")

    def _check_levels(self) -> None:
        check_spacing(self.spacing)
        if self.timesteps is None:
            return
        check_timesteps(self.timesteps)
        if self.spacing is not None:
            raise UserError(f"spacing {self.spacing} says nothing where timesteps are given: leave one of them out")
        if self.num_inference_steps not in (Request.num_inference_steps, len(self.timesteps)):
            raise UserError(f"{self.num_inference_steps} steps, but {len(self.timesteps)} timesteps: leave one out")

    @property
    def pictures(self) -> list[tuple[str, int]]:
        """Prompt and seed of each picture, in order."""
        prompts = [prompt for prompt in self.prompts for _ in range(self.num_images)]
        return [(prompt, self.seed + number) for number, prompt in enumerate(prompts)]


class TextToImage:
    """A trained pipeline that draws pictures of prompts."""

    def __init__(self, parts: Parts) -> None:
        """Take over the parts, which must lie on one device, and switch them to evaluation."""
        self.parts = parts
        self.schedule = make_schedule(parts.diffusion.schedule)
        self.prediction = Prediction(parts.diffusion.prediction)
        for network in (parts.autoencoder, parts.unet, parts.text_encoder):
            network.eval()

    @classmethod
    def from_pretrained(
        cls, path: str | Path = "emoji", dtype: torch.dtype = torch.float32, device: str | torch.device | None = None
    ) -> TextToImage:
        """Load a run, a directory in diffusers layout, a Hub id or a built-in model; by default onto a GPU if any.

        Raises UserError when there is no such model or device, or a file of the model is damaged.
        """
        place = find_device(device)
        return cls(load_pipeline(resolve(path), dtype)).to(place)

    def save_pretrained(self, path: str | Path) -> None:
        """Write the pipeline as a directory in diffusers layout."""
        save_pipeline(self.parts, Path(path))

    def to(self, device: str | torch.device) -> TextToImage:
        """Move all networks to a device."""
        for network in (self.parts.autoencoder, self.parts.unet, self.parts.text_encoder):
            network.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.parts.unet.parameters()).device

    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str = "",
        guidance_scale: float = 3.0,
        num_inference_steps: int = 30,
        num_images: int = 1,
        seed: int = 0,
        *,
        guidance_rescale: float = 0.0,
        spacing: str | None = None,
        timesteps: Sequence[float] | None = None,
        sampler: str = "ddim",
        eta: float | None = None,
        size: tuple[int, int] | None = None,
        latents: Tensor | None = None,
        batch_size: int = 8,
        progress: Progress | None = None,
    ) -> list[Image.Image]:
        """`num_images` pictures of each prompt, those of the first prompt first; see `Request` for the options.

        `latents` (pictures, C, h, w) replaces the standard normal numbers to start from, and sets the size. Raises
        UserError for what the model cannot do.
        """
        request = Request(
            prompts=(prompt,) if isinstance(prompt, str) else tuple(prompt),
            negative_prompt=negative_prompt,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            num_inference_steps=num_inference_steps,
            spacing=spacing,
            timesteps=None if timesteps is None else tuple(timesteps),
            num_images=num_images,
            seed=seed,
            sampler=sampler,
            eta=eta,
            size=size,
            batch_size=batch_size,
        )
        return list(self.draw(request, latents, progress))

    def draw(
        self,
        request: Request,
        latents: Tensor | None = None,
        progress: Progress | None = None,
        numbers: Sequence[int] | None = None,
    ) -> Iterator[Image.Image]:
        """The pictures of a request, as each batch of them is done; the request is checked at once.

        `numbers` says which of `request.pictures` to draw, all of them by default.
        """
        grid = self._grid(request)
        shape = self._latent_shape(request, latents)
        chosen = list(range(len(request.pictures)) if numbers is None else numbers)
        return self._batches(request, grid, shape, latents, progress, chosen)

    def _grid(self, request: Request) -> Grid:
        if request.timesteps is not None:
            return self.schedule.grid_at(request.timesteps)
        return self.schedule.grid(request.num_inference_steps, request.spacing)

    def size(self, request: Request) -> tuple[int, int]:
        """Width and height in pixels of the pictures of a request."""
        side = self.parts.unet.config.sample_size * self.parts.autoencoder.config.downsampling_factor
        return request.size or (side, side)

    def _latent_shape(self, request: Request, latents: Tensor | None) -> tuple[int, int, int]:
        """(C, h, w) of one picture's latents, of a size that the networks can halve as often as they do."""
        unet = self.parts.unet.config
        factor = self.parts.autoencoder.config.downsampling_factor
        width, height = self.size(request)
        if latents is not None:
            given = (latents.shape[-1] * factor, latents.shape[-2] * factor)
            count = len(request.pictures)
            if latents.shape[:-2] != (count, unet.in_channels) or request.size not in (None, given):
                needed = (count, unet.in_channels, height // factor, width // factor)
                raise UserError(f"latents are {tuple(latents.shape)}: {width}x{height} pictures need {needed}")
            width, height = given
        multiple = factor * 2 ** (len(unet.block_out_channels) - 1)
        if min(width, height) < 1 or width % multiple or height % multiple:
            raise UserError(f"size {width}x{height}: width and height must be multiples of {multiple} for this model")
        return unet.in_channels, height // factor, width // factor

    def _batches(
        self,
        request: Request,
        grid: Grid,
        shape: tuple[int, int, int],
        latents: Tensor | None,
        progress: Progress | None,
        numbers: list[int],
    ) -> Iterator[Image.Image]:
        pictures, size = request.pictures, request.batch_size
        total = math.ceil(len(numbers) / size) * len(grid)
        for batch, first in enumerate(range(0, len(numbers), size)):
            chosen = numbers[first : first + size]
            prompts, seeds = zip(*(pictures[number] for number in chosen), strict=True)
            noise = SeededNoise(seeds)
            start = torch.empty(len(seeds), *shape, device=self.device)
            start = noise(start) if latents is None else latents[chosen].to(start)
            steps = self._steps(request, prompts, grid, start, noise)
            for step, x in enumerate(steps, start=batch * len(grid) + 1):  # noqa: B007
                if progress:
                    progress(step, total)
            yield from self._decode(x)

    @torch.inference_mode()
    def _steps(
        self, request: Request, prompts: Sequence[str], grid: Grid, start: Tensor, noise: SeededNoise
    ) -> Iterator[Tensor]:
        """Latents (B, C, h, w) after each step, in float32 whatever the type of the networks."""
        context, negative = self._contexts(prompts, request.negative_prompt)
        denoiser = classifier_free(
            lambda context: self._denoiser(context, grid),
            context,
            negative,
            self.prediction,
            request.guidance_scale,
            request.guidance_rescale,
        )
        sampler = make_sampler(request.sampler, request.eta)
        for step in sampler(denoiser, grid.initial_scale * start, grid, noise):
            yield step.x

    def _contexts(self, prompts: Sequence[str], negative_prompt: str) -> tuple[Tensor, Tensor]:
        """What the U-Net attends to for each prompt and for the negative one, each (B, L, D)."""
        texts = list(dict.fromkeys([*prompts, negative_prompt]))  # each is encoded once
        ids, mask = self.parts.tokenizer(texts)
        encoded = self.parts.text_encoder(ids.to(self.device), mask.to(self.device))
        rows = [texts.index(prompt) for prompt in prompts]
        return encoded[rows], encoded[[texts.index(negative_prompt)] * len(prompts)]

    def _denoiser(self, context: Tensor, grid: Grid) -> Denoiser:
        """The U-Net given a context (B, L, D), with all that does not change while sampling computed here, once."""
        unet = self.parts.unet
        projected = unet.project_context(context)
        embeddings = dict(zip(grid.t.tolist(), unet.embed_time(grid.t.to(self.device)).split(1), strict=True))

        def network(x: Tensor, t: Tensor) -> Tensor:
            return unet.denoise(x, embeddings[t.item()], projected).to(x.dtype)

        posteriors = Posteriors(grid) if self.parts.diffusion.learned_variance else None
        return make_denoiser(network, self.prediction, posteriors)

    @torch.inference_mode()
    def _decode(self, latents: Tensor) -> list[Image.Image]:
        pictures = self.parts.autoencoder.decode(latents).float()  # (B, 3, H, W)
        levels = (pictures.clamp(-1, 1) + 1).mul(127.5).round().to(torch.uint8)
        return [Image.fromarray(picture) for picture in levels.permute(0, 2, 3, 1).cpu().numpy()]


class SeededNoise:
    """Standard normal numbers for a batch, each sample's from its own generator on the CPU.

    So a seed gives the same numbers on every device and in every batch.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, x: Tensor) -> Tensor:
        """The next numbers, in the shape, type and place of `x` (B, ...)."""
        drawn = [torch.randn(x.shape[1:], generator=generator) for generator in self.generators]
        return torch.stack(drawn).to(x)


def find_device(name: str | torch.device | None = None) -> torch.device:
    """A device by its PyTorch name, by default the first GPU if any; raises UserError if it is not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError):  # PyTorch raises any of them
        raise UserError(f"no device {str(name)!r} on this machine: give cpu, or cuda or cuda:1 with a GPU") from None
