"""Guided sampling of latents, one call of the U-Net, and a whole image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ldm import config as configuration
from ldm.bench.networks import (
    TOKENS,
    Prepare,
    operations,
    prepared,
    random_network,
    sides_of_diffusers,
    their_autoencoder,
    their_scheduler,
    their_unet,
    with_cuda_graphs,
)
from ldm.bench.workload import Run, Workload
from ldm.checkpoint.pipeline import Pipeline
from ldm.conditioning.conditions import Conditions
from ldm.conditioning.unconditional import Unconditional
from ldm.config.root import Config
from ldm.devices import find_device
from ldm.generation import Request, TextToImage
from ldm.generation.quality import complete
from ldm.generation.sampling import SeededNoise
from ldm.models import tiling
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.unet.unet import UNet

SCALE = 3.0  # of guidance
STEPS = 20
T = 601  # timestep of the single call


def sampling(name: str, dtype: torch.dtype, against: bool, steps: int = STEPS) -> Workload:
    """Sample the latents of one image by DDIM with guidance and the U-Net of a configuration."""
    config, device = configuration.load(name), find_device()
    contexts, start = contexts_of(config, 2).to(device), noise_of(config, 1).to(device)
    scheduler = their_scheduler(config.diffusion) if against else None

    def ours(network: UNet) -> Run:
        return our_sampling(pipeline_of(config, network), steps, contexts, start)

    def theirs(network: Any, dtype: torch.dtype) -> Run:
        return lambda: their_sampling(network, scheduler, steps, contexts.to(dtype), start.to(dtype))

    return _with_unet(config, dtype, 2 * steps, ours, theirs if against else None)


def step(name: str, dtype: torch.dtype, against: bool) -> Workload:
    """Call a configuration's U-Net once on the two rows of a guided image, as in the middle of sampling."""
    config, device = configuration.load(name), find_device()
    contexts, latents = contexts_of(config, 2).to(device), noise_of(config, 2).to(device)
    t = torch.tensor([T], device=device)

    def ours(network: UNet) -> Run:
        with torch.inference_mode():
            embedding, projected = network.embed_time(t), network.project_context(contexts)
        unet = with_cuda_graphs(network)
        return torch.inference_mode()(lambda: unet.denoise(latents, embedding, projected))

    def theirs(network: Any, dtype: torch.dtype) -> Run:
        x, context = latents.to(dtype), contexts.to(dtype)
        return torch.no_grad()(lambda: network(x, t, encoder_hidden_states=context).sample)

    return _with_unet(config, dtype, 2, ours, theirs if against else None)


def _with_unet(
    config: Config,
    dtype: torch.dtype,
    rows: int,
    ours: Callable[[UNet], Run],
    theirs: Callable[[Any, torch.dtype], Run] | None,
) -> Workload:
    """Return a workload of a configuration's U-Net on `rows` rows in all."""
    unet = random_network(lambda: UNet(config.denoiser)).to(find_device())
    sides: dict[str, Any] = {}
    if theirs is not None:
        sides = sides_of_diffusers(lambda prepare, dtype: theirs(prepare(their_unet(unet), dtype), dtype), dtype)
    return Workload(
        ours=ours(prepared(unet, dtype)),
        plain=ours(unet) if theirs is None else None,
        flops=rows * operations(config)["unet"],
        dtype=dtype,
        **sides,
    )


def image(name: str, dtype: torch.dtype, against: bool, steps: int = 50) -> Workload:
    """Generate one image of a configuration's size from noise to pixels, without its text encoder."""
    config, device = configuration.load(name), find_device()
    unet = random_network(lambda: UNet(config.denoiser)).to(device)
    autoencoder = random_network(lambda: Autoencoder(config.autoencoder)).to(device)
    contexts, start = contexts_of(config, 2).to(device), noise_of(config, 1).to(device)

    def ours(unet: UNet, decoder: Autoencoder) -> Run:
        latents = our_sampling(pipeline_of(config, unet), steps, contexts, start)
        return lambda: tiling.decode(decoder, latents())

    def theirs(prepare: Prepare, dtype: torch.dtype) -> Run:
        network, decoder = prepare(their_unet(unet), dtype), prepare(their_autoencoder(autoencoder), dtype)
        scheduler = their_scheduler(config.diffusion)

        def run() -> Tensor:
            latents = their_sampling(network, scheduler, steps, contexts.to(dtype), start.to(dtype))
            return decoder.decode(latents / decoder.config.scaling_factor).sample

        return torch.no_grad()(run)

    counted = operations(config)
    return Workload(
        ours=ours(prepared(unet, dtype), prepared(autoencoder, dtype)),
        plain=None if against else ours(unet, autoencoder),
        flops=2 * steps * counted["unet"] + counted["decode"],
        images=1,
        dtype=dtype,
        **(sides_of_diffusers(theirs, dtype) if against else {}),
    )


def contexts_of(config: Config, count: int) -> Tensor:
    """Return random contexts (count, L, D)."""
    shape = (count, TOKENS, config.denoiser.context_width or 0)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def noise_of(config: Config, count: int, side: int | None = None) -> Tensor:
    """Return initial noise (count, C, h, w), by default of the configuration's size."""
    side = side or config.data.size // config.autoencoder.downsampling_factor
    shape = (count, config.autoencoder.latent_channels, side, side)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def pipeline_of(config: Config, unet: UNet) -> TextToImage:
    """Return a pipeline without a text encoder, for given contexts."""
    autoencoder = random_network(lambda: Autoencoder(config.autoencoder))
    compiled = next(unet.parameters()).device.type == "cuda"
    pipeline = Pipeline(autoencoder, unet, config.diffusion, {"unconditional": Unconditional()})
    return TextToImage(pipeline, prepare=False, compiled=compiled)


def our_sampling(pipe: TextToImage, steps: int, contexts: Tensor, start: Tensor) -> Callable[[], Tensor]:
    """Sample latents from noise (B, C, h, w); the first of the contexts (B + 1, L, D) is the negative one."""
    request = complete(Request(guidance_scale=SCALE, num_inference_steps=steps), None)
    grid = pipe.grid(request)
    negative, condition = Conditions(contexts[:1]), Conditions(contexts[1:])

    @torch.inference_mode()
    def run() -> Tensor:
        noise = SeededNoise(range(len(start)))
        *_, last = pipe.sample(request, grid, condition, negative, start, noise)
        return last.x

    return run


@torch.no_grad()
def their_sampling(unet: Any, scheduler: Any, steps: int, contexts: Tensor, start: Tensor) -> Tensor:
    """Run the sampling loop of diffusers' StableDiffusionPipeline."""
    scheduler.set_timesteps(steps, device=start.device)
    latents = start * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        both = scheduler.scale_model_input(torch.cat([latents, latents]), t)
        without, conditional = unet(both, t, encoder_hidden_states=contexts).sample.chunk(2)
        latents = scheduler.step(without + SCALE * (conditional - without), t, latents).prev_sample
    return latents
