"""A pipeline that we save generates the same image here and in StableDiffusionPipeline of diffusers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ldm.checkpoint.pipeline import Pipeline
from ldm.conditioning.text.bert import BertConfig, BertTextEncoder
from ldm.conditioning.text.conditioning import TextConditioning
from ldm.conditioning.text.tokenizers import Tokenizer
from ldm.config.diffusion import DiffusionConfig, schedule_config
from ldm.generation import TextToImage
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.unet.config import UNetConfig
from ldm.models.unet.unet import UNet

PROMPTS = ["a red dog playing a trumpet", "two blue cats"]
PLAIN = DiffusionConfig()
ZERO_SNR_V = DiffusionConfig(
    schedule=schedule_config(zero_terminal_snr=True, spacing="trailing", set_alpha_to_one=True), prediction="v"
)


def random_pipeline(diffusion: DiffusionConfig) -> Pipeline:
    text = BertConfig(max_length=12, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    tokenizer = Tokenizer.train(PROMPTS * 3, vocab_size=100, max_length=text.max_length)
    autoencoder = AutoencoderConfig(
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.7,
        shift_factor=0.3,
    )
    unet = UNetConfig(
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        attention_layers=(0, 1, 2),
        num_attention_heads=2,
        cross_attention_dim=32,
        norm_num_groups=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = (Autoencoder(autoencoder), UNet(unet), BertTextEncoder(text, tokenizer.vocab_size))
        for weight in (weight for network in networks for weight in network.parameters()):
            if weight.ndim > 1:  # none of it may be silent
                nn.init.normal_(weight, 0.0, weight[0].numel() ** -0.5)
    text_conditioning = TextConditioning([(networks[2], tokenizer)])
    return Pipeline(*networks[:2], diffusion, {"text": text_conditioning})


@pytest.fixture(scope="module", params=[PLAIN, ZERO_SNR_V], ids=["eps", "zero-snr-v"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TextToImage, Any]:
    from diffusers import StableDiffusionPipeline

    folder = tmp_path_factory.mktemp("pipeline")
    TextToImage(random_pipeline(request.param)).save_pretrained(folder)
    theirs = StableDiffusionPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    return TextToImage.from_pretrained(Path(folder), device="cpu"), partial(theirs, output_type="np")


def psnr(image: Any, expected: np.ndarray) -> float:
    error = np.asarray(image) / 255 - np.round(expected * 255) / 255
    return float(10 * np.log10(1 / max(np.square(error).mean(), 1e-12)))


def latents(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"guidance_scale": 1.0}, {"guidance_scale": 1.0}),
        ({"guidance_scale": 3.0}, {"guidance_scale": 3.0}),
        (
            {"guidance_scale": 5.0, "negative_prompt": "two dog trumpet"},
            {"guidance_scale": 5.0, "negative_prompt": ["two dog trumpet"] * 2},
        ),
        ({"guidance_scale": 5.0, "guidance_rescale": 0.7}, {"guidance_scale": 5.0, "guidance_rescale": 0.7}),
    ],
    ids=["no guidance", "guidance", "negative prompt", "rescaled"],
)
def test_the_same_images_come_from_the_same_latents(both: Any, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    pipe, diffusers_pipe = both
    images = pipe(PROMPTS, num_inference_steps=10, latents=latents(), **ours)
    expected = diffusers_pipe(PROMPTS, num_inference_steps=10, latents=latents(), **theirs).images
    assert [image.size for image in images] == [(32, 32)] * 2
    assert expected.std() > 0.05
    assert all(psnr(image, other) > 50 for image, other in zip(images, expected, strict=True))


@pytest.mark.slow
def test_thirty_steps_give_the_same_images(both: Any) -> None:
    """The default; 30 does not divide 1000, so that with trailing spacing their strides miss their next timestep."""
    pipe, diffusers_pipe = both
    images = pipe(PROMPTS, latents=latents(1))
    expected = diffusers_pipe(PROMPTS, num_inference_steps=30, guidance_scale=3.0, latents=latents(1)).images
    assert all(psnr(image, other) > 50 for image, other in zip(images, expected, strict=True))


def test_other_sizes_give_the_same_images(both: Any) -> None:
    pipe, diffusers_pipe = both
    wide = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    (image,) = pipe(PROMPTS[0], num_inference_steps=5, latents=wide)
    options = {"guidance_scale": 3.0, "num_inference_steps": 5, "height": 32, "width": 48}
    (expected,) = diffusers_pipe(PROMPTS[0], latents=wide, **options).images
    assert image.size == (48, 32)
    assert psnr(image, expected) > 50
