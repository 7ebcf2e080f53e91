"""Pipelines that see an image beside the latents: ours draw there what they draw here, and theirs load here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from PIL import Image
from pipeline_pairs import both, psnr, random_image

from ldm.checkpoint.diffusers.pipeline import load_pipeline
from ldm.checkpoint.pipeline import Pipeline

STEPS = 5
PROMPT = "a red dog"
PIPELINES: dict[str, Callable[[], Pipeline]] = {
    "StableDiffusionInpaintPipeline": tiny.inpainting,
    "LDMSuperResolutionPipeline": tiny.super_resolution,
}


def test_what_a_mask_hides_is_filled_alike(tmp_path: Path) -> None:
    ours, theirs = both(tiny.inpainting(), "StableDiffusionInpaintPipeline", tmp_path)
    image, hole = random_image(48, 32), np.zeros((32, 48), dtype=np.uint8)
    hole[5:21, 7:30], hole[20:, 40:] = 255, 128  # white from the middle grey on
    mask = Image.fromarray(hole)
    noise = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    sizes = {"width": 48, "height": 32}
    for scale in (1.0, 4.0):
        options: dict[str, Any] = {"latents": noise, "num_inference_steps": STEPS, "guidance_scale": scale}
        [generated] = ours(PROMPT, image=image, mask=mask, **options)
        [expected] = theirs(PROMPT, image=image, mask_image=mask, **sizes, **options).images
        assert np.asarray(expected)[hole == 255].std() > 20
        # Ours has the given pixels outside of the hole, which theirs decodes from latents.
        assert psnr(generated, Image.composite(expected, image, mask)) > 50


def test_a_small_image_becomes_the_same_large_one(tmp_path: Path) -> None:
    ours, theirs = both(tiny.super_resolution(), "LDMSuperResolutionPipeline", tmp_path)
    image = random_image(64, 32)
    noise = torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(5))
    [generated] = ours(image=image, latents=noise, num_inference_steps=STEPS)
    generator = torch.Generator().manual_seed(5)
    [expected] = theirs(image=image, num_inference_steps=STEPS, generator=generator).images
    assert generated.size == expected.size == (128, 64)
    assert np.asarray(expected).std() > 20
    assert psnr(generated, expected) > 50


@pytest.mark.parametrize("name", PIPELINES)
def test_what_diffusers_saves_is_the_same_model_here(name: str, tmp_path: Path) -> None:
    ours, theirs = both(PIPELINES[name](), name, tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = load_pipeline(tmp_path / "theirs")
    assert loaded.modules["spatial"].config == ours.pipeline.modules["spatial"].config
    weights, others = loaded.denoiser.state_dict(), ours.pipeline.denoiser.state_dict()
    assert all(torch.equal(weight, others[key]) for key, weight in weights.items())
