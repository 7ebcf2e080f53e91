"""Denoisers of a batch: the U-Net given conditions, and the guidance of a request around it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ldm.conditioning.conditions import Conditions
from ldm.conditioning.text.composition import Mixture
from ldm.diffusion.denoiser import Denoiser, make_denoiser
from ldm.diffusion.guidance import classifier_free, composed, text_and_image, thresholded, within
from ldm.diffusion.level import Grid
from ldm.diffusion.posterior import Posteriors
from ldm.diffusion.samplers.step import Step
from ldm.generation.deepcache import DeepCacheUNet
from ldm.generation.guides import guide_by_gradients
from ldm.generation.request import Request, Subject
from ldm.models.precision import not_finite

if TYPE_CHECKING:
    from ldm.generation.text_to_image import TextToImage

# 99.5 % of an image's latents, which have unit variance over all images, have smaller magnitudes: the median over 200
# scenes in the built-in model is 2.6, their 90th percentile 3.3, a Gaussian's value 2.8.
USUAL_LATENTS = 3.0
PIXELS = 1.0  # magnitude of pixels, as in the paper


class SeededNoise:
    """Standard normal noise for a batch, each sample's from its own CPU generator.

    A seed gives the same noise on every device and in every batch.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = list(seeds)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the next noise with shape, dtype and device of `x` (B, ...)."""
        noise = [torch.randn(x.shape[1:], generator=generator) for generator in self.generators]
        return torch.stack(noise).to(x)


def conditional_denoiser(
    pipe: TextToImage, grid: Grid, deepcache: int, dtype: torch.dtype | None, *conditions: Conditions
) -> Denoiser:
    """Return the U-Net given conditions of consecutive parts of a batch, for one pass over a grid.

    What does not change from step to step is computed here, once. `deepcache` and `dtype` as in `Request`.
    """
    condition, plain = Conditions.cat(conditions), pipe.pipeline.denoiser
    unet = pipe.prepared_unet.get(plain, dtype)
    projected, in_time = unet.project_context(condition.context), condition.in_time
    rows = in_time.count or 1  # one for all images where the embedding depends on t alone
    repeated = in_time.map(lambda tensor: tensor.repeat(len(grid), *[1] * (tensor.ndim - 1)))
    device = next(unet.parameters()).device
    t = grid.t.to(device).repeat_interleave(rows)  # (steps * B)
    embedded = unet.embed_time(t, *repeated.time_inputs).split(rows)  # (B or 1, E) for each step
    embeddings = dict(zip(grid.t.tolist(), embedded, strict=True))
    cached = DeepCacheUNet(unet, grid, deepcache) if deepcache > 1 else None
    replayed = pipe.prepared_unet.replayed(unet)

    def embedding_at(t: Tensor) -> Tensor:
        if (found := embeddings.get(t.item())) is not None:
            return found
        return unet.embed_time(t.to(device).repeat(rows), in_time.classes, in_time.added)  # between two levels

    def network(x: Tensor, t: Tensor) -> Tensor:
        if condition.concat is not None:
            x = torch.cat([x, condition.concat], dim=1)
        constants = embedding_at(t), projected
        if cached is not None:
            return cached.denoise(t.item(), x, *constants).to(x.dtype)
        differentiable = x.requires_grad and torch.is_grad_enabled()
        return (plain if differentiable else replayed).denoise(x, *constants).to(x.dtype)

    return make_denoiser(
        network, pipe.prediction, Posteriors(grid) if pipe.pipeline.diffusion.learned_variance else None
    )


def finite_steps(steps: Iterator[Step], pipe: TextToImage, dtype: torch.dtype | None) -> Iterator[Step]:
    """Yield the steps of a sampler; check them when it has ended, so that no step waits for a GPU.

    Raises:
        NonFiniteError: if an output of the denoiser, or what guidance and sampler made of it, is not finite.
    """
    flags = []
    for step in steps:
        flags.append(torch.stack([step.denoised.output.isfinite().all(), step.x.isfinite().all()]))
        yield step
    for number, (output, x) in enumerate(torch.stack(flags).tolist() if flags else (), start=1):
        if output and x:
            continue
        name = f"the denoiser {pipe.pipeline.denoiser_name}" if not output else "guidance and sampler"
        raise not_finite(f"{name} at step {number} of {len(flags)}", dtype or pipe.pipeline.denoiser.dtype)


def guided_denoiser(
    pipe: TextToImage,
    request: Request,
    grid: Grid,
    condition: Conditions,
    negative: Conditions | None,
    subjects: Sequence[Subject],
    seeds: Sequence[int],
    mixture: Mixture | None = None,
) -> Denoiser:
    """Return the denoiser of B images with all guidance of a resolved request.

    Guidance by conditions and by gradients is limited to the interval; the threshold applies to all levels.

    Args:
        condition: of B images, or with a `mixture` of its rows.
        negative: of B images; None: without guidance by conditions.
        subjects: of the B images, for guidance by a classifier or by CLIP.
    """
    denoiser_of = partial(conditional_denoiser, pipe, grid, request.deepcache, request.dtype)

    def by_conditions(scale: float | None, image_scale: float | None = None) -> Denoiser:
        if negative is None:
            return denoiser_of(condition)
        assert scale is not None, "resolve the request first"
        if mixture is None and image_scale is not None:
            assert negative.concat is not None  # of the models that have this scale
            neither = replace(negative, concat=torch.zeros_like(negative.concat))
            rows = condition, negative, neither
            return text_and_image(denoiser_of, *rows, pipe.prediction, scale, image_scale, request.guidance_rescale)
        if mixture is None:
            return classifier_free(denoiser_of, condition, negative, pipe.prediction, scale, request.guidance_rescale)
        assert mixture is not None
        return composed(
            denoiser_of, condition, *mixture.to(pipe.device), negative, pipe.prediction, scale, request.guidance_rescale
        )

    denoiser = by_conditions(request.guidance_scale, request.image_guidance_scale)
    if request.needs_gradients:
        denoiser = guide_by_gradients(denoiser, request, pipe.pipeline, subjects, seeds)
    if request.guidance_interval is not None:
        denoiser = within(denoiser, by_conditions(1.0), *request.guidance_interval)
    if request.threshold is not None:
        usual = PIXELS if pipe.pipeline.autoencoder.config.is_pixel_space else USUAL_LATENTS
        denoiser = thresholded(denoiser, request.threshold, request.threshold_range or usual)
    return denoiser
