"""Activations beyond float16's range: force_upcast keeps float32, and outputs that are not finite are errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import random_pipeline
from torch import nn

from ldm.checkpoint.diffusers.pipeline import save_pipeline
from ldm.checkpoint.pipeline import Pipeline
from ldm.errors import UserError
from ldm.evaluation.reconstruct import reconstruction
from ldm.generation import Request, TextToImage, directions, interpolate
from ldm.models.fast import prepare_for_sampling
from ldm.models.precision import NonFiniteError
from ldm.storage.weights import save_weights
from ldm.training.latents import encode

LARGE = 1e6  # above 65504, the largest float16
GREY = Image.new("RGB", (16, 16), (90, 120, 150))


def with_large_activations(upcast: bool = True) -> Pipeline:
    """A pipeline whose decoder has activations around 1e6 before its last norm, as the VAE of SDXL has large ones."""
    pipeline = random_pipeline()
    autoencoder = pipeline.autoencoder
    autoencoder.config = autoencoder.config.model_copy(update={"force_upcast": upcast})
    with torch.no_grad():
        autoencoder.decoder.conv_in.bias.add_(torch.randn(16, generator=torch.Generator().manual_seed(0)) * LARGE)
    return pipeline


def generated(pipe: TextToImage, dtype: torch.dtype | None) -> np.ndarray:
    [image] = pipe("a red dog", num_inference_steps=2, dtype=dtype)
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("prepare", [True, False])
@pytest.mark.parametrize("loaded", [torch.float32, torch.float16])
def test_float16_images_of_a_force_upcast_autoencoder_equal_those_of_float32(
    tmp_path: Path, loaded: torch.dtype, prepare: bool
) -> None:
    save_pipeline(with_large_activations(), tmp_path)
    exact = generated(TextToImage.from_pretrained(tmp_path, device="cpu"), None)
    assert exact.std() > 1
    pipe = TextToImage.from_pretrained(tmp_path, loaded, "cpu", prepare=prepare)
    assert np.abs(generated(pipe, torch.float16) - exact).max() <= 12  # the U-Net's rounding


def test_a_prepared_copy_in_float16_of_a_force_upcast_autoencoder_is_float32() -> None:
    autoencoder = with_large_activations().autoencoder
    assert prepare_for_sampling(autoencoder, torch.float16).dtype == torch.float32
    autoencoder.config = autoencoder.config.model_copy(update={"force_upcast": False})
    assert prepare_for_sampling(autoencoder, torch.float16).dtype == torch.float16


def test_an_overflow_in_the_decoder_names_it_and_suggests_a_dtype() -> None:
    pipe = TextToImage(with_large_activations(upcast=False))
    with pytest.raises(UserError, match=r"decoder in float16 is not finite.*bfloat16 or float32"):
        generated(pipe, torch.float16)
    assert generated(pipe, torch.float32).std() > 1


def broken(network: nn.Module) -> None:
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)


PARTS: dict[str, tuple[Callable[[Pipeline], nn.Module], str]] = {
    "text encoder": (lambda pipeline: pipeline.modules["text_encoder"], "text_encoder in float32"),
    "denoiser": (lambda pipeline: pipeline.denoiser, "denoiser unet at step 1 of 2 in float32"),
    "decoder": (lambda pipeline: pipeline.autoencoder.decoder, "autoencoder's decoder in float32"),
    "encoder": (lambda pipeline: pipeline.autoencoder.encoder, "autoencoder's encoder in float32"),
}


@pytest.mark.parametrize("part", PARTS)
def test_an_output_that_is_not_finite_is_an_error_that_names_the_network(part: str) -> None:
    pipeline, (network, message) = random_pipeline(), PARTS[part]
    broken(network(pipeline))
    pipe = TextToImage(pipeline)
    with pytest.raises(NonFiniteError, match=message):
        pipe("a red dog", num_inference_steps=2, image=GREY if part == "encoder" else None, strength=None)


def test_infinite_latents_are_an_error_although_a_threshold_makes_them_finite() -> None:
    pipeline = random_pipeline()
    with torch.no_grad():
        pipeline.denoiser.conv_out.bias.fill_(torch.inf)
    with pytest.raises(NonFiniteError, match="step 1 of 3"):
        TextToImage(pipeline)("a red dog", num_inference_steps=3, threshold=0.9, guidance_scale=1.0)


@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_reconstructing_and_caching_check_the_autoencoder(part: str) -> None:
    autoencoder = random_pipeline().autoencoder
    broken(getattr(autoencoder, part))
    with pytest.raises(NonFiniteError, match="autoencoder"):
        reconstruction(autoencoder, np.asarray(GREY))
    if part == "encoder":
        with pytest.raises(NonFiniteError, match="encoder"):
            encode(autoencoder, np.asarray(GREY)[None], torch.device("cpu"))


def test_interpolation_and_directions_check_the_denoiser() -> None:
    pipe = TextToImage(random_pipeline())
    broken(pipe.pipeline.denoiser)
    with pytest.raises(NonFiniteError, match="denoiser"):
        interpolate.between_prompts(pipe, "a red dog", "two blue cats", 2, Request(num_inference_steps=2))
    with pytest.raises(NonFiniteError, match="denoiser"):
        interpolate.between_images(pipe, "", GREY, GREY, 2, Request(num_inference_steps=2))
    with pytest.raises(NonFiniteError, match="denoiser"):
        directions.find(pipe, [GREY], [GREY], directions.InversionSettings(steps=2))


def test_weights_beyond_float16_are_not_saved_as_infinities(tmp_path: Path) -> None:
    tensors = {"weight": torch.tensor([1.0, -LARGE])}
    with pytest.raises(UserError, match=r"weight has the value 1e\+06.*bfloat16"):
        save_weights(tmp_path, "model", tensors, torch.float16)
    save_weights(tmp_path, "model", tensors, torch.bfloat16)
