"""A pipeline draws with prepared networks what it draws with its own, as they are at the time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import random_pipeline

from ldm.generation import TextToImage


@pytest.fixture
def pipe() -> TextToImage:
    return TextToImage(random_pipeline())


def generated(pipe: TextToImage) -> np.ndarray:
    return np.asarray(pipe("a red dog", num_inference_steps=3, seed=5)[0]).astype(int)


def test_images_are_those_of_the_plain_networks_and_the_process_stays_as_it_was(pipe: TextToImage) -> None:
    plain = generated(TextToImage(pipe.pipeline, prepare=False))
    before = torch.get_float32_matmul_precision(), torch.get_rng_state(), torch.is_grad_enabled()
    assert np.abs(generated(pipe) - plain).max() <= 1
    after = torch.get_float32_matmul_precision(), torch.get_rng_state(), torch.is_grad_enabled()
    assert (before[0], before[2]) == (after[0], after[2])
    assert torch.equal(before[1], after[1])


@pytest.mark.parametrize("part", ["unet", "autoencoder"])
def test_a_weight_that_is_edited_in_place_changes_in_the_next_image(pipe: TextToImage, part: str) -> None:
    before, prepared = generated(pipe), getattr(pipe, f"prepared_{part}")
    network = pipe.pipeline.modules[part]
    assert prepared.get(network) is prepared.get(network)
    block = network.mid_block if part == "unet" else network.decoder.mid_block
    block.resnets[0].conv1.weight.data += 0.5
    after = generated(pipe)
    assert np.abs(after - before).max() > 1
    assert np.abs(after - generated(TextToImage(pipe.pipeline, prepare=False))).max() <= 1


def test_without_preparation_the_networks_themselves_generate(pipe: TextToImage) -> None:
    pipe = TextToImage(pipe.pipeline, prepare=False)
    for cache, network in (
        (pipe.prepared_unet, pipe.pipeline.denoiser),
        (pipe.prepared_autoencoder, pipe.pipeline.autoencoder),
    ):
        assert cache.get(network) is network
