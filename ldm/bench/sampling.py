"""Guided sampling of latents, one call of the U-Net in it, and a whole image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ldm import config as configuration
from ldm.bench.networks import (
    TOKENS,
    converted,
    operations,
    prepared,
    random_network,
    recorded,
    their_autoencoder,
    their_scheduler,
    their_unet,
)
from ldm.bench.workload import Run, Workload
from ldm.checkpoint.diffusers.pipeline import Parts
from ldm.config.root import Config
from ldm.devices import find_device
from ldm.generation import Request, TextToImage
from ldm.generation.condition import Condition
from ldm.generation.seeded_noise import SeededNoise
from ldm.models import tiling
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.unet.unet import UNet

SCALE = 3.0  # of guidance
STEPS = 20
T = 601  # of the one call


def sampling(name: str, dtype: torch.dtype, against: bool, steps: int = STEPS) -> Workload:
    """The latents of one image out of noise, by DDIM with guidance and the U-Net of a configuration."""
    config, device = configuration.load(name), find_device()
    contexts, start = contexts_of(config, 2).to(device), noise_of(config, 1).to(device)
    scheduler = their_scheduler(config.diffusion) if against else None

    def ours(network: UNet) -> Run:
        return our_sampling(pipeline_of(config, network), steps, contexts, start)

    def theirs(network: Any, dtype: torch.dtype) -> Run:
        return lambda: their_sampling(network, scheduler, steps, contexts.to(dtype), start.to(dtype))

    return _with_unet(config, dtype, 2 * steps, ours, theirs if against else None)


def step(name: str, dtype: torch.dtype, against: bool) -> Workload:
    """One call of a configuration's U-Net on the two rows of a guided image, as it is in the midst of sampling."""
    config, device = configuration.load(name), find_device()
    contexts, latents = contexts_of(config, 2).to(device), noise_of(config, 2).to(device)
    t = torch.tensor([T], device=device)

    def ours(network: UNet) -> Run:
        with torch.inference_mode():
            embedding, projected = network.embed_time(t), network.project_context(contexts)
        unet = recorded(network)
        return torch.inference_mode()(lambda: unet.denoise(latents, embedding, projected))

    def theirs(network: Any, dtype: torch.dtype) -> Run:
        x, told = latents.to(dtype), contexts.to(dtype)
        return torch.no_grad()(lambda: network(x, t, encoder_hidden_states=told).sample)

    return _with_unet(config, dtype, 2, ours, theirs if against else None)


def _with_unet(
    config: Config,
    dtype: torch.dtype,
    rows: int,
    ours: Callable[[UNet], Run],
    theirs: Callable[[Any, torch.dtype], Run] | None,
) -> Workload:
    """What is done with a configuration's U-Net, which sees so many `rows` in all."""
    unet = random_network(lambda: UNet(config.need_unet())).to(find_device())

    def their(make: Callable[[Any, torch.dtype], Any], dtype: torch.dtype) -> Run | None:
        return None if theirs is None else theirs(make(their_unet(unet), dtype), dtype)

    return Workload(
        ours=ours(prepared(unet, dtype)),
        theirs=their(converted, torch.float32),
        tuned=their(tuned_network, dtype),
        theirs_bf16=their(converted, dtype) if dtype == torch.bfloat16 else None,
        plain=ours(unet) if theirs is None else None,
        flops=rows * operations(config)["unet"],
        dtype=dtype,
    )


def image(name: str, dtype: torch.dtype, against: bool, steps: int = 50) -> Workload:
    """One image of a configuration's size, from noise to pixels, given what its text encoder would say."""
    config, device = configuration.load(name), find_device()
    unet = random_network(lambda: UNet(config.need_unet())).to(device)
    autoencoder = random_network(lambda: Autoencoder(config.autoencoder)).to(device)
    contexts, start = contexts_of(config, 2).to(device), noise_of(config, 1).to(device)

    def ours(unet: UNet, decoder: Autoencoder) -> Run:
        latents = our_sampling(pipeline_of(config, unet), steps, contexts, start)
        return lambda: tiling.decode(decoder, latents())

    def theirs(dtype: torch.dtype, tuned: bool = False) -> Run | None:
        if not against:
            return None
        make = tuned_network if tuned else converted
        network, decoder = make(their_unet(unet), dtype), make(their_autoencoder(autoencoder), dtype)
        scheduler = their_scheduler(config.diffusion)

        def run() -> Tensor:
            latents = their_sampling(network, scheduler, steps, contexts.to(dtype), start.to(dtype))
            return decoder.decode(latents / decoder.config.scaling_factor).sample

        return torch.no_grad()(run)

    counted = operations(config)
    return Workload(
        ours=ours(prepared(unet, dtype), prepared(autoencoder, dtype)),
        theirs=theirs(torch.float32),
        tuned=theirs(dtype, tuned=True),
        theirs_bf16=theirs(dtype) if dtype == torch.bfloat16 else None,
        plain=None if against else ours(unet, autoencoder),
        flops=2 * steps * counted["unet"] + counted["decode"],
        images=1,
        dtype=dtype,
    )


def contexts_of(config: Config, count: int) -> Tensor:
    """Random numbers in the place of texts, (count, L, D)."""
    shape = (count, TOKENS, config.need_unet().cross_attention_dim or 0)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def noise_of(config: Config, count: int, side: int | None = None) -> Tensor:
    """Noise (count, C, h, w) to start from, of images as the configuration has them or of another side."""
    side = side or config.data.size // config.autoencoder.downsampling_factor
    shape = (count, config.autoencoder.latent_channels, side, side)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def pipeline_of(config: Config, unet: UNet) -> TextToImage:
    """A pipeline that is given its contexts: it has no text encoder."""
    autoencoder = random_network(lambda: Autoencoder(config.autoencoder))
    compiled = next(unet.parameters()).device.type == "cuda"
    return TextToImage(Parts(autoencoder, unet, None, None, config.diffusion), prepare=False, compiled=compiled)


def our_sampling(pipe: TextToImage, steps: int, contexts: Tensor, start: Tensor) -> Callable[[], Tensor]:
    """From noise `start` (B, C, h, w) to latents, away from the first of the contexts (B + 1, L, D), to the others."""
    request = Request(guidance_scale=SCALE, num_inference_steps=steps)
    negative, condition = Condition(contexts[:1]), Condition(contexts[1:])

    def run() -> Tensor:
        noise = SeededNoise(range(len(start)))
        for latents in pipe.sample(request, condition, negative, start, noise):  # noqa: B007
            pass
        return latents

    return run


@torch.no_grad()
def their_sampling(unet: Any, scheduler: Any, steps: int, contexts: Tensor, start: Tensor) -> Tensor:
    """The loop of diffusers' StableDiffusionPipeline, without anything around it."""
    scheduler.set_timesteps(steps, device=start.device)
    latents = start * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        both = scheduler.scale_model_input(torch.cat([latents, latents]), t)
        without, conditional = unet(both, t, encoder_hidden_states=contexts).sample.chunk(2)
        latents = scheduler.step(without + SCALE * (conditional - without), t, latents).prev_sample
    return latents


def tuned_network(network: Any, dtype: torch.dtype) -> Any:
    """A network of diffusers with what its users can set: type and memory format and, on a GPU, the compiler."""
    network = converted(network, dtype).to(memory_format=torch.channels_last)
    if next(network.parameters()).device.type == "cuda":
        network.compile(mode="max-autotune")
    return network
