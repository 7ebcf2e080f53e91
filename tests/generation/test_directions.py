"""Directions in latents: what they are, what they do to an image, and their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from PIL import Image
from running import Command

from ldm.errors import UserError
from ldm.generation import TextToImage
from ldm.generation.directions import Direction, InversionSettings, find, inverted, moved

WAY = InversionSettings(strength=0.5, steps=8, prompt="a dog")


@pytest.fixture(scope="module")
def pipe() -> TextToImage:
    return TextToImage(tiny.bert())


def scenes(count: int, seed: int) -> list[Image.Image]:
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(256, size=(32, 32, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.mark.slow
def test_a_direction_is_the_difference_of_the_means_at_the_noisy_end(pipe: TextToImage) -> None:
    first, second = scenes(10, 0), scenes(3, 1)  # more than go together
    found = find(pipe, first, second, WAY)
    start, end = (torch.stack([inverted(pipe, [p], WAY)[0] for p in group]).mean(0) for group in (first, second))
    torch.testing.assert_close(found.latents, end - start, rtol=1e-3, atol=1e-4)
    assert found.latents.shape == (4, 16, 16)
    back = find(pipe, second, first, WAY)
    torch.testing.assert_close(back.latents, -found.latents, rtol=1e-3, atol=1e-4)


def test_an_image_that_is_moved_by_its_distance_from_another_becomes_the_other(pipe: TextToImage) -> None:
    [image], [other] = scenes(1, 2), scenes(1, 3)
    there = find(pipe, [image], [other], WAY)
    stays, goes, far = (np.asarray(image).astype(int) for image in moved(pipe, image, there, [0.0, 1.0, 2.0]))
    [arrived] = moved(pipe, other, there, [0.0])
    assert np.abs(goes - np.asarray(arrived)).max() <= 1
    assert np.abs(goes - stays).mean() > 8
    assert np.abs(far - goes).mean() > 8


def test_the_way_back_comes_near_the_image_with_many_steps(pipe: TextToImage) -> None:
    [image], nothing = scenes(1, 4), torch.zeros(4, 16, 16)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        [copy] = pipe.decode(pipe.pipeline.autoencoder.encode(pixels).mode())
    errors = []
    for steps in (4, 64):
        [again] = moved(pipe, image, Direction(nothing, InversionSettings(0.5, steps)), [0.0])
        errors.append(np.abs(np.asarray(again).astype(int) - np.asarray(copy)).mean())
    assert errors[1] < errors[0] / 3


def test_a_direction_is_found_for_models_that_know_no_prompts() -> None:
    for make in (lambda: tiny.unconditional("kl"), tiny.own_variations):
        pipe = TextToImage(make())
        found = find(pipe, scenes(1, 0), scenes(1, 1), InversionSettings(0.5, 4))
        assert len(moved(pipe, scenes(1, 0)[0], found, [1.0])) == 1
        with pytest.raises(UserError, match="takes no prompts"):
            find(pipe, scenes(1, 0), scenes(1, 1), WAY)


def test_a_file_keeps_the_direction_and_its_way(pipe: TextToImage, tmp_path: Path) -> None:
    found = Direction(torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(0)), WAY)
    found.save(tmp_path / "d.safetensors")
    back = Direction.load(tmp_path / "d.safetensors")
    assert torch.equal(back.latents, found.latents)
    assert back.settings == WAY
    pipe.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="contains no direction"):
        Direction.load(tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    wide = Direction(torch.zeros(4, 8, 8), WAY)
    with pytest.raises(UserError, match=r"has latents \(4, 8, 8\), this model \(4, 16, 16\)"):
        moved(pipe, scenes(1, 0)[0], wide, [1.0])
    with pytest.raises(UserError, match="groups have 0 and 1 images"):
        find(pipe, [], scenes(1, 0), WAY)


@pytest.mark.slow
def test_the_command_finds_and_applies(here: Command, pipe: TextToImage, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        for number, image in enumerate(scenes(2, seed)):
            image.save(tmp_path / name / f"{number}.png")
    model = ("--model", tmp_path / "model", "--device", "cpu")
    words = ("--strength", 0.5, "--steps", 8, "--prompt", "a dog", "--out", tmp_path / "d.safetensors")
    here("direction", "find", tmp_path / "a", tmp_path / "b", *words, *model)
    found = Direction.load(tmp_path / "d.safetensors")
    assert found.settings == WAY
    torch.testing.assert_close(found.latents, find(pipe, scenes(2, 0), scenes(2, 1), WAY).latents, rtol=1e-3, atol=1e-3)
    images, sheet = (tmp_path / "a" / "0.png", tmp_path / "b" / "1.png"), tmp_path / "x.png"
    amounts = ("--amount", 0, "--amount", 1, "--out", sheet)
    here("direction", "apply", tmp_path / "d.safetensors", *images, *amounts, *model)
    assert Image.open(sheet).size == (3 * 34 - 2, 2 * 34 - 2)  # a row an image, which stands before its amounts
    assert Image.open(sheet).crop((0, 34, 32, 66)).tobytes() == Image.open(images[1]).tobytes()
    alone = tmp_path / "y.png"
    here("direction", "apply", tmp_path / "d.safetensors", images[1], "--out", alone, *model)
    assert Image.open(alone).tobytes() == Image.open(sheet).crop((68, 34, 100, 66)).tobytes()
    (tmp_path / "empty").mkdir()
    for bad, message in (("empty", "contains no images"), ("none", "none is not a folder")):
        done = here("direction", "find", tmp_path / bad, tmp_path / "b", check=False)
        assert done.returncode == 2
        assert message in done.stderr
