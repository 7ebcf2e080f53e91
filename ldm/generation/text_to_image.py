"""Text to image: prompt -> condition -> guided denoiser -> sampler over levels -> latents -> image."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from ldm.checkpoint.diffusers.pipeline import Parts, find_model, load_pipeline, save_pipeline
from ldm.conditioning.text.composition import Prompt, spread
from ldm.devices import computes_bfloat16, find_device
from ldm.diffusion.denoiser import Denoiser, make_denoiser
from ldm.diffusion.level import Grid
from ldm.diffusion.posterior import Posteriors
from ldm.diffusion.prediction import make_prediction
from ldm.diffusion.samplers import make_sampler
from ldm.diffusion.schedule import make_schedule
from ldm.errors import UserError, UserNote
from ldm.generation.batching import Drawing, Progress
from ldm.generation.condition import Condition, joined, mapped
from ldm.generation.conditioners import make_conditioner
from ldm.generation.cuda_graphs import CUDAGraphUNet, require_gpu
from ldm.generation.deepcache import DeepCacheUNet
from ldm.generation.guiding import guided, resolve_guides, steered
from ldm.generation.init_image import InitImage, InpaintImage
from ldm.generation.prepared_cache import PreparedCache
from ldm.generation.quality import resolve_quality
from ldm.generation.request import Request, SizeConditioning, Subject
from ldm.generation.seeded_noise import SeededNoise
from ldm.generation.sizes import enlarges, image_size, latent_shape
from ldm.generation.spatial import make_spatial_input
from ldm.models import tiling
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.unet.unet import UNet
from ldm.storage.weights import SHARD_SIZE

if TYPE_CHECKING:
    from ldm.generation.guides import ClassifierGuidance, ClipGuidance


class TextToImage:
    """A trained pipeline that draws images of prompts; some draw classes instead, or what they were trained on."""

    def __init__(self, parts: Parts, tile: int | None = None, prepare: bool = True, compiled: bool = False) -> None:
        """Take over the parts, which must lie on one device, and switch them to evaluation.

        `tile` is the side in pixels of the tiles in which images go through the autoencoder, 0 for whole images;
        None: only large images go in tiles. Raises UserError for a side that no tile can have. Without `prepare`
        images are drawn by the parts themselves, not by copies made for inference (`prepare_for_sampling`). With
        `compiled`, which is for GPUs, the first images of a size take a minute more and the others less: blocks of
        the copies are compiled and steps are replayed as CUDA graphs.
        """
        if tile is not None:
            tiling.tiling_of(parts.autoencoder, tiling.WHOLE, tile)
        self.parts, self.tile = parts, tile
        self.compiled = compiled
        self._ready_unet = PreparedCache[UNet](prepare, compiled)
        self._ready_autoencoder = PreparedCache[Autoencoder](prepare, compiled)
        self._recorded: CUDAGraphUNet | None = None
        self.schedule = make_schedule(parts.diffusion.schedule)
        self.prediction = make_prediction(parts.diffusion.prediction)
        self.conditioner = make_conditioner(parts)
        self.spatial_input = make_spatial_input(parts, tile)
        for network in parts.networks:
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
    ) -> TextToImage:
        """Load a run, a directory in diffusers layout, a Hub id or a built-in model; by default onto a GPU if any.

        `tile`, `prepare` and `compiled` as for the pipeline itself.

        Raises UserError when there is no such model or device, or a file of the model is damaged, and for `compiled`
        elsewhere than on a GPU.
        """
        place = find_device(device)
        if compiled:
            require_gpu(place)
        if dtype == torch.bfloat16 and place.type == "cpu" and not computes_bfloat16(place):
            note = "this processor has no instructions for bfloat16, in which it takes many times as long as in float32"
            warnings.warn(note, UserNote, stacklevel=2)
        return cls(load_pipeline(find_model(path), dtype), tile, prepare, compiled).to(place)

    def save_pretrained(
        self, path: str | Path, dtype: torch.dtype | None = None, max_shard_size: int = SHARD_SIZE
    ) -> None:
        """Write the pipeline as a directory in diffusers layout, its weights as `dtype` if given.

        Files of weights have at most `max_shard_size` bytes, but for tensors that alone are larger.
        """
        save_pipeline(self.parts, Path(path), dtype, max_shard_size)

    def to(self, device: str | torch.device) -> TextToImage:
        """Move all networks to a device."""
        for network in self.parts.networks:
            network.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.parts.device

    @property
    def unet(self) -> UNet:
        """The U-Net that draws where no gradient is wanted: prepared, and as `parts` has it now."""
        return self._ready_unet.of(self.parts.unet)

    @property
    def autoencoder(self) -> Autoencoder:
        """The same of the autoencoder."""
        return self._ready_autoencoder.of(self.parts.autoencoder)

    @property
    def pending(self) -> int:
        """Bytes that the networks prepared for sampling will take, which are made when they are needed."""
        unet, autoencoder = self.parts.unet, self.parts.autoencoder
        return self._ready_unet.pending(unet) + self._ready_autoencoder.pending(autoencoder)

    def __call__(
        self,
        prompt: Prompt | Sequence[Prompt] = (),
        negative_prompt: str = "",
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        num_images: int = 1,
        seed: int = 0,
        *,
        quality: str = "exact",
        prompt_syntax: str = "plain",
        long_prompts: bool = False,
        classes: int | str | Sequence[int | str] = (),
        negative_class: int | str | None = None,
        size_conditioning: SizeConditioning | None = None,
        guidance_rescale: float = 0.0,
        spacing: str | None = None,
        timesteps: Sequence[float] | None = None,
        sampler: str | None = None,
        eta: float | None = None,
        deepcache: int | None = None,
        dtype: torch.dtype | None = None,
        size: tuple[int, int] | None = None,
        image: Image.Image | None = None,
        strength: float | None = None,
        mask: Image.Image | None = None,
        layout: Image.Image | None = None,
        guidance_interval: tuple[float, float] | None = None,
        threshold: float | None = None,
        threshold_range: float | None = None,
        classifier: ClassifierGuidance | None = None,
        clip: ClipGuidance | None = None,
        latents: Tensor | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> list[Image.Image]:
        """`num_images` images of each prompt or class, those of the first one first; see `Request` for the options.

        `latents` (images, C, h, w) replaces the standard normal numbers to start from, and sets the size. Raises
        UserError for what the model cannot do.
        """
        request = Request(
            prompts=(prompt,) if isinstance(prompt, Prompt) else tuple(prompt),
            negative_prompt=negative_prompt,
            prompt_syntax=prompt_syntax,
            long_prompts=long_prompts,
            classes=(classes,) if isinstance(classes, int | str) else tuple(classes),
            negative_class=negative_class,
            size_conditioning=size_conditioning,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            quality=quality,
            num_inference_steps=num_inference_steps,
            spacing=spacing,
            timesteps=None if timesteps is None else tuple(timesteps),
            num_images=num_images,
            seed=seed,
            sampler=sampler,
            eta=eta,
            deepcache=deepcache,
            dtype=dtype,
            size=size,
            image=image,
            strength=strength,
            mask=mask,
            layout=layout,
            guidance_interval=guidance_interval,
            threshold=threshold,
            threshold_range=threshold_range,
            classifier=classifier,
            clip=clip,
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
        """The images of a request, as each batch of them is done; the request is checked at once.

        `numbers` says which of `request.images` to draw, all of them by default.
        """
        request = self.resolve(request)
        grid = self.grid(request)
        shape = latent_shape(self.parts, request, latents)
        given = self._given(request)
        chosen = list(range(len(request.images)) if numbers is None else numbers)
        return Drawing(self, request, grid, shape, latents, given, progress).images(chosen)

    def resolve(self, request: Request) -> Request:
        """The request with what it leaves to the model; UserError where it asks for what the model does not know."""
        if request.clip is not None and request.dtype not in (None, self.parts.unet.dtype):
            raise UserError("CLIP guidance needs the gradient of the model itself: load that in another type")
        resolved = self.spatial_input.resolve(resolve_guides(request, self.parts, self.conditioner))
        return resolve_quality(resolved, self.device)

    def grid(self, request: Request) -> Grid:
        """The levels that the sampler of a request visits."""
        if request.timesteps is not None:
            return request.taken(self.schedule.grid_at(request.timesteps))
        return request.taken(self.schedule.grid(request.steps, request.spacing))

    def size(self, request: Request) -> tuple[int, int]:
        """Width and height in pixels of the images of a request; those of an image are cut to what can be drawn."""
        return image_size(self.parts, request)

    def _given(self, request: Request) -> InitImage | None:
        """The image that sampling starts from, if any."""
        if request.image is None or enlarges(self.parts):
            return None
        size, scaled, spatial = self.size(request), request.size is not None, self.parts.spatial
        given = request.image, request.mask, size, scaled, self.autoencoder, self.device, self.tile
        if spatial is not None and spatial.config.kind == "inpainting":
            return InpaintImage(*given, from_noise=request.given_strength == 1)
        return InitImage(*given)

    def sample(
        self,
        request: Request,
        condition: Condition,
        negative: Condition | None,
        start: Tensor,
        noise: SeededNoise,
        given: InitImage | None = None,
        subjects: Sequence[Subject] = (),
    ) -> Iterator[Tensor]:
        """Latents (B, C, h, w) after each step from `start`, in float32 whatever the type of the networks.

        `condition` of B images and `negative` of one take the place of the subjects of a request, which is resolved;
        subjects that are composed have several rows, and guides besides the condition are told of all subjects.
        """
        request = resolve_quality(request, self.device)
        # Tensors of inference mode could not take part in a gradient, which some guides need of a step.
        mode = torch.inference_mode if request.classifier is None and request.clip is None else torch.no_grad
        return mode()(self._steps)(request, condition, negative, start, noise, given, subjects)

    def _steps(
        self,
        request: Request,
        condition: Condition,
        negative: Condition | None,
        start: Tensor,
        noise: SeededNoise,
        given: InitImage | None,
        subjects: Sequence[Subject],
    ) -> Iterator[Tensor]:
        grid = self.grid(request)

        def denoiser(*conditions: Condition) -> Denoiser:
            return self.denoiser(joined(*conditions), grid, request.deepcache or 1, request.dtype)

        def steer(denoiser: Denoiser) -> Denoiser:
            return steered(denoiser, request, self.parts, subjects, noise.seeds)

        away = None if negative is None else negative.expand(len(start))
        seen = guided(denoiser, steer, request, condition, away, spread(subjects)[1], self.parts)
        if given is not None:
            seen = given.keep(seen)
        assert request.sampler is not None  # a resolved request has one
        for step in make_sampler(request.sampler, request.eta)(seen, start, grid, noise):
            yield step.x

    @torch.inference_mode()
    def condition(self, prompts: Sequence[str], request: Request) -> Condition:
        """What the U-Net is told of each prompt, in images of the size that a request asks for."""
        return self.encode_cond_and_uncond(prompts, request)[0]

    @torch.inference_mode()
    def encode_cond_and_uncond(self, prompts: Sequence[str], request: Request) -> tuple[Condition, Condition | None]:
        """The same, and what it is told of one image that the request guides away from, if any."""
        request = self.resolve(request)
        size = self.size(request)
        condition, negative = self.conditioner.encode_cond_and_uncond(prompts, request, size)
        beside = self.spatial_input(request, size)
        return condition.beside(beside, len(prompts)), negative and negative.beside(beside)

    def denoiser(
        self, condition: Condition, grid: Grid, deepcache: int = 1, dtype: torch.dtype | None = None
    ) -> Denoiser:
        """The U-Net given a condition, with all that does not change while sampling computed here, once.

        `deepcache` and `dtype` as in `Request`; a denoiser that reuses is for one walk along the grid.
        """
        plain = self.parts.unet
        ready = self._ready_unet.of(plain, dtype)
        projected = ready.project_context(condition.context)
        embeddings = dict(zip(grid.t.tolist(), _embedded(ready, condition.in_time, grid), strict=True))
        reusing, sooner = DeepCacheUNet(ready, grid, deepcache), self._replayed(ready)

        def network(x: Tensor, t: Tensor) -> Tensor:
            if condition.spatial is not None:
                x = torch.cat([x, condition.spatial], dim=1)
            constants = embeddings[t.item()], projected
            if deepcache > 1:
                return reusing.denoise(t.item(), x, *constants).to(x.dtype)
            unet = plain if x.requires_grad and torch.is_grad_enabled() else sooner
            return unet.denoise(x, *constants).to(x.dtype)

        posteriors = Posteriors(grid) if self.parts.diffusion.learned_variance else None
        return make_denoiser(network, self.prediction, posteriors)

    def _replayed(self, ready: UNet) -> UNet | CUDAGraphUNet:
        """A prepared U-Net by recordings of its calls, if that is wanted; those of another one are given up."""
        if not self.compiled:
            return ready
        if self._recorded is None or self._recorded.unet is not ready:
            self._recorded = CUDAGraphUNet(ready)
        return self._recorded

    @torch.inference_mode()
    def decode(self, latents: Tensor, dtype: torch.dtype | None = None) -> list[Image.Image]:
        """The images of latents (B, C, h, w), by a decoder of the type of its weights or in another."""
        autoencoder = self._ready_autoencoder.of(self.parts.autoencoder, dtype)
        images = tiling.decode(autoencoder, latents, self.tile).float()  # (B, 3, H, W)
        levels = (images.clamp(-1, 1) + 1).mul(127.5).round().to(torch.uint8)
        return [Image.fromarray(image) for image in levels.permute(0, 2, 3, 1).cpu().numpy()]


def _embedded(unet: UNet, condition: Condition, grid: Grid) -> tuple[Tensor, ...]:
    """What joins the U-Net at each step of a grid: (1, E), or (B, E) where it differs between images."""
    rows = condition.count or 1
    t = grid.t.to(next(unet.parameters()).device).repeat_interleave(rows)  # (steps * B)
    told = mapped(lambda tensor: tensor.repeat(len(grid), *[1] * (tensor.ndim - 1)), condition)
    return unet.embed_time(t, told.classes, told.added).split(rows)
