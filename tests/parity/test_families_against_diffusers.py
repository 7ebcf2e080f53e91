"""Families of released models: inpainting, InstructPix2Pix, latent consistency, SDXL's refiner; images of diffusers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from PIL import Image
from pipeline_pairs import both, psnr, random_image

from ldm.checkpoint.pipeline import Pipeline
from ldm.conditioning.guidance import GuidanceEmbedding
from ldm.conditioning.text.conditioning import TextConditioning
from ldm.errors import UserError
from ldm.generation import Request, TextToImage
from ldm.models.unet.unet import UNet

PROMPT = "a red dog"


def refiner() -> Pipeline:
    """SDXL's refiner: one text encoder, and five numbers of which the last is an aesthetic score."""
    base = tiny.sdxl()
    encoder, tokenizer = base.conditionings["text"].encoders[1]
    config = base.denoiser.config.model_copy(
        update={"cross_attention_dim": 48, "projection_class_embeddings_input_dim": 40 + 5 * 16}
    )
    return replace(base, denoiser=network(config), conditionings={"text": TextConditioning([(encoder, tokenizer)])})


def network(config: Any) -> UNet:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        unet = UNet(config)
        tiny.speaking(unet)
    return unet


def consistency() -> Pipeline:
    base = tiny.sd_1()
    unet = network(base.denoiser.config.model_copy(update={"time_cond_proj_dim": 24}))
    return replace(base, denoiser=unet, conditionings=dict(base.conditionings) | {"guidance": GuidanceEmbedding()})


def certain(pipeline: Pipeline) -> Pipeline:
    """Make the posterior of the autoencoder so narrow that its mode is what others sample."""
    with torch.no_grad():
        last = pipeline.autoencoder.quant_conv
        last.weight[4:], last.bias[4:] = 0, -30
    return pipeline


def noise(height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(0))


EDITS = {
    "StableDiffusionInstructPix2PixPipeline": tiny.sd_1,
    "StableDiffusionXLInstructPix2PixPipeline": tiny.sdxl,
}


@pytest.mark.parametrize("scales", [(5.0, 1.5), (3.0, 1.0), (1.0, None)])
@pytest.mark.parametrize("name", EDITS)
def test_an_instruction_edits_an_image_alike(name: str, scales: tuple[float, float | None], tmp_path: Path) -> None:
    pipeline = tiny.with_spatial(EDITS[name](), kind="image_edit", channels=4)
    ours, theirs = both(certain(pipeline), name, tmp_path)
    image, (scale, image_scale) = random_image(32, 32), scales
    options: dict[str, Any] = {"guidance_scale": scale, "latents": noise(), "num_inference_steps": 5}
    [found] = ours(PROMPT, image=image, **options, image_guidance_scale=image_scale)
    options |= {"height": 32, "width": 32} if "XL" in name else {}
    [expected] = theirs(PROMPT, image=image, image_guidance_scale=image_scale or 1.5, **options).images
    assert np.asarray(expected).std() > 20
    assert psnr(found, expected) > 60


def test_sdxl_fills_what_a_mask_hides_alike(tmp_path: Path) -> None:
    pipeline = tiny.with_spatial(tiny.sdxl(), kind="inpainting", in_channels=1, channels=5)
    ours, theirs = both(certain(pipeline), "StableDiffusionXLInpaintPipeline", tmp_path)
    image, hole = random_image(32, 32), np.zeros((32, 32), dtype=np.uint8)
    hole[5:21, 7:30] = 255
    options: dict[str, Any] = {"guidance_scale": 4.0, "latents": noise(), "num_inference_steps": 5, "strength": 1.0}
    [found] = ours(PROMPT, image=image, mask=Image.fromarray(hole), **options)
    sizes = {"width": 32, "height": 32}
    [expected] = theirs(PROMPT, image=image, mask_image=Image.fromarray(hole), **sizes, **options).images
    assert np.asarray(expected)[hole == 255].std() > 20
    assert psnr(found, Image.composite(expected, image, Image.fromarray(hole))) > 60


@pytest.mark.parametrize("scale", [8.5, 1.0])
def test_one_step_of_a_consistency_model_embeds_the_guidance_scale(scale: float, tmp_path: Path) -> None:
    TextToImage(consistency()).save_pretrained(tmp_path)
    ours = TextToImage.from_pretrained(tmp_path, device="cpu")
    theirs = diffusers.LatentConsistencyModelPipeline.from_pretrained(
        tmp_path, scheduler=diffusers.LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    )
    theirs.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"guidance_scale": scale, "latents": noise()}
    [found] = ours(PROMPT, num_inference_steps=1, **options)
    [expected] = theirs(PROMPT, num_inference_steps=1, **options).images
    assert np.asarray(expected).std() > 20
    assert psnr(found, expected) > 60


@pytest.mark.parametrize("steps", [4, 8])
def test_a_consistency_model_samples_at_the_timesteps_of_diffusers(steps: int, tmp_path: Path) -> None:
    pipe = TextToImage(consistency())
    scheduler = diffusers.LCMScheduler()
    scheduler.set_timesteps(steps)
    grid = pipe.grid(pipe.resolve(Request(prompts=(PROMPT,), num_inference_steps=steps)))
    assert grid.t.tolist() == scheduler.timesteps.tolist()


def test_a_consistency_model_rejects_what_needs_classifier_free_guidance() -> None:
    with pytest.raises(UserError, match="takes the guidance scale as an input: leave negative_prompt out"):
        TextToImage(consistency())(PROMPT, negative_prompt="cat")


def test_the_refiner_continues_from_an_image_alike(tmp_path: Path) -> None:
    ours, theirs = both(certain(refiner()), "StableDiffusionXLImg2ImgPipeline", tmp_path)
    assert theirs.config.requires_aesthetics_score
    image, seed = random_image(32, 32), 0
    options: dict[str, Any] = {"guidance_scale": 4.0, "num_inference_steps": 10, "strength": 0.5}
    scores = {"aesthetic_score": 7.0, "negative_aesthetic_score": 1.0}
    [found] = ours(PROMPT, image=image, seed=seed, **options, **scores)
    start = torch.Generator().manual_seed(seed)
    drawn = torch.randn(1, 4, 16, 16, generator=start)
    module = "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img.randn_tensor"
    with mock.patch(module, return_value=drawn):
        [expected] = theirs(PROMPT, image=image, negative_prompt="", **options, **scores).images
    assert np.asarray(expected).std() > 20
    assert psnr(found, expected) > 60


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (refiner, "StableDiffusionXLImg2ImgPipeline"),
        (consistency, "StableDiffusionPipeline"),
        (
            lambda: tiny.with_spatial(tiny.sd_1(), kind="image_edit", channels=4),
            "StableDiffusionInstructPix2PixPipeline",
        ),
    ],
)
def test_what_diffusers_saves_is_the_same_model_here(make: Any, name: str, tmp_path: Path) -> None:
    ours, theirs = both(certain(make()), name, tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = TextToImage.from_pretrained(tmp_path / "theirs", device="cpu").pipeline
    assert loaded.sections == ours.pipeline.sections
    weights, others = loaded.denoiser.state_dict(), ours.pipeline.denoiser.state_dict()
    assert all(torch.equal(weight, others[key]) for key, weight in weights.items())
