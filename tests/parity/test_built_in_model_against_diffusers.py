"""The built-in model draws the same image through diffusers."""

import numpy as np
import pytest
import torch

from ldm import TextToImage
from ldm.checkpoint.find import find_model

PROMPT, NEGATIVE = "a corgi playing a trumpet", "a cat"


@pytest.mark.parametrize("steps", [20, pytest.param(25, marks=pytest.mark.slow)])
def test_stable_diffusion_pipeline_generates_the_same_image(steps: int) -> None:
    from diffusers import StableDiffusionPipeline

    theirs = StableDiffusionPipeline.from_pretrained(find_model("emoji"), dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    options = {"negative_prompt": NEGATIVE, "guidance_scale": 3.0, "num_inference_steps": steps, "latents": latents}
    reference = theirs(PROMPT, output_type="np", **options).images[0] * 255  # (64, 64, 3)
    [ours] = TextToImage.from_pretrained("emoji", device="cpu")(PROMPT, **options)
    error = np.square(np.asarray(ours).astype(float) - reference.round()).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-9)) > 50
