"""`--vae`: another autoencoder of the same latents; and prompt syntax that is not supported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import random_pipeline

from ldm.checkpoint.diffusers.pipeline import save_pipeline
from ldm.checkpoint.vae import with_autoencoder
from ldm.conditioning.text.prompt_weights import parse
from ldm.errors import UserError
from ldm.generation import TextToImage
from ldm.models.autoencoder.autoencoder import Autoencoder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_pipeline(random_pipeline(), tmp_path / "model")
    return tmp_path / "model"


def other(folder: Path, **options: object) -> Path:
    config = random_pipeline().autoencoder.config
    torch.manual_seed(3)
    Autoencoder(config.model_copy(update=options)).save_pretrained(folder)
    return folder


def test_images_are_decoded_by_the_other_autoencoder(model: Path, tmp_path: Path) -> None:
    folder = other(tmp_path / "vae")
    pipe = TextToImage.from_pretrained(model, device="cpu", vae=folder)
    [image] = pipe("a red dog", num_inference_steps=2)
    own = TextToImage.from_pretrained(model, device="cpu")
    own.pipeline.autoencoder.load_state_dict(Autoencoder.from_pretrained(folder).state_dict())
    [expected] = own("a red dog", num_inference_steps=2)
    assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_the_downsampling_factor_of_the_autoencoder_decides_the_size(model: Path, tmp_path: Path) -> None:
    folder = other(tmp_path / "vae", block_out_channels=(8, 8, 16))
    [image] = TextToImage.from_pretrained(model, device="cpu", vae=folder)("a red dog", num_inference_steps=1)
    assert image.size == (32, 32)  # twice that of the model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_channels": 3}, "latents have 3 channels, but this model's have 4"),
        ({"scaling_factor": 0.5}, "scaling_factor is 0.5 .*this model's are 0.8"),
    ],
)
def test_an_autoencoder_of_other_latents_is_an_error(tmp_path: Path, options: dict[str, object], message: str) -> None:
    folder = other(tmp_path / "vae", **options)
    with pytest.raises(UserError, match=message):
        with_autoencoder(random_pipeline(), folder)


@pytest.mark.parametrize(
    "prompt", ["[a:b:0.5]", "[a:0.5]", "[a::0.5]", "[a|b]", "a [(b:1.2):c:3]", "a BREAK b", "a (x AND b)", "[[a:b:2]]"]
)
def test_syntax_that_changes_over_the_steps_is_an_error_and_not_words(prompt: str) -> None:
    with pytest.raises(UserError, match="not supported"):
        parse(prompt)


@pytest.mark.parametrize("prompt", [r"\[a:b:0.5\]", "a: b", "a|b", "[a (b:1.2)]", "[a] : [b]", "break and", "(a: b)"])
def test_literal_brackets_and_colons_stay_words(prompt: str) -> None:
    assert parse(prompt).text
