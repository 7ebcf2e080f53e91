"""Walks between prompts, seeds and images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import CAPTIONS, random_pipeline

from ldm.cli.interpolate import kind_of, save
from ldm.errors import UserError
from ldm.generation import Request, TextToImage
from ldm.generation.interpolate import between_images, between_prompts, between_seeds, slerp


@pytest.fixture(scope="module")
def pipe() -> TextToImage:
    return TextToImage(random_pipeline())


def request(**options: object) -> Request:
    return Request(prompts=(CAPTIONS[0],), num_inference_steps=4, batch_size=2, **options)


def same(image: Image.Image, other: Image.Image) -> bool:
    return abs(np.asarray(image).astype(int) - np.asarray(other).astype(int)).max() <= 1  # batches differ


def test_a_walk_between_prompts_ends_at_their_images(pipe: TextToImage) -> None:
    frames = between_prompts(pipe, CAPTIONS[0], CAPTIONS[1], 5, request(seed=3))
    ends = [pipe(caption, num_inference_steps=4, seed=3)[0] for caption in CAPTIONS[:2]]
    assert len(frames) == 5
    assert same(frames[0], ends[0])
    assert same(frames[-1], ends[1])
    assert not same(frames[2], ends[0])
    assert not same(frames[2], ends[1])


def test_a_walk_between_seeds_ends_at_their_images(pipe: TextToImage) -> None:
    frames = between_seeds(pipe, CAPTIONS[0], 3, 8, 4, request())
    for frame, seed in ((frames[0], 3), (frames[-1], 8)):
        assert same(frame, pipe(CAPTIONS[0], num_inference_steps=4, seed=seed)[0])


def test_the_arc_keeps_the_length_and_the_angle() -> None:
    first, second = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    expected = 3 * torch.tensor([np.cos(np.pi / 8), np.sin(np.pi / 8)])
    torch.testing.assert_close(slerp(first, second, 0.25).double(), expected)
    torch.testing.assert_close(slerp(first, first * 2, 0.5), first * 1.5)


@pytest.mark.slow
def test_a_walk_between_images_comes_near_them_with_many_steps(pipe: TextToImage) -> None:
    generator = np.random.default_rng(0)
    ends = [Image.fromarray(generator.integers(256, size=(16, 16, 3), dtype=np.uint8)) for _ in range(2)]
    errors = []
    for steps in (5, 100):
        asked = Request(prompts=("",), num_inference_steps=steps)
        frames = between_images(pipe, CAPTIONS[0], *ends, 3, asked)
        assert len(frames) == 3
        with torch.no_grad():
            pixels = torch.from_numpy(np.array(ends[0])).permute(2, 0, 1)[None] / 127.5 - 1
            [copy] = pipe.decode(pipe.pipeline.autoencoder.encode(pixels).mode())
        errors.append(np.abs(np.asarray(frames[0]).astype(int) - np.asarray(copy)).mean())
    assert errors[1] < errors[0] / 3


def test_what_does_not_go_together_raises_an_error(pipe: TextToImage) -> None:
    assert kind_of("a.png", "b.jpg", None) == "images"
    assert kind_of("3", "4", "a dog") == "seeds"
    assert kind_of("a dog", "a cat", None) == "prompts"
    with pytest.raises(UserError, match="two images"):
        kind_of("a.png", "a dog", None)
    with pytest.raises(UserError, match="leave it out for two prompts"):
        kind_of("a dog", "a cat", "a cow")
    with pytest.raises(UserError, match="it must be at least 2"):
        between_prompts(pipe, "a", "b", 1, request())


def test_frames_are_written_as_the_name_says(tmp_path: Path) -> None:
    images = [Image.new("RGB", (16, 16), (20 * i, 0, 0)) for i in range(10)]
    save(images, tmp_path / "x.gif")
    assert Image.open(tmp_path / "x.gif").n_frames == 10
    save(images, tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").size == (8 * 18 - 2, 2 * 18 - 2)
    save(images, tmp_path)
    assert len(list(tmp_path.glob("frame-*.png"))) == 10
