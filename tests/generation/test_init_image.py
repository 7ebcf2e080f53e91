"""Drawing that begins with an image, or keeps a part of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import random_pipeline
from torch import Tensor

from ldm.data.images import read_image
from ldm.errors import UserError
from ldm.generation import Request, TextToImage
from ldm.generation.init_image import InitImage, cover, cut, make_init_image
from ldm.models.tiling import Tiling, decode_tiled, encode_tiled
from ldm.registry import SAMPLERS

STEPS = 5


@pytest.fixture(scope="module")
def pipe() -> TextToImage:
    return TextToImage(random_pipeline())


@pytest.fixture(scope="module")
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(256, size=(16, 24, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def mask() -> Image.Image:
    pixels = np.zeros((16, 24), dtype=np.uint8)
    pixels[:, 9:] = 255
    return Image.fromarray(pixels)


def draw(pipe: TextToImage, **options: Any) -> np.ndarray:
    [image] = pipe("a red dog", num_inference_steps=STEPS, seed=1, **options)
    return np.asarray(image).astype(int)


def test_strength_one_forgets_the_image_where_the_schedule_ends_in_noise_alone(
    pipe: TextToImage, image: Image.Image
) -> None:
    assert np.array_equal(draw(pipe, image=image, strength=1.0), draw(pipe, size=(24, 16)))


def test_less_strength_stays_nearer_to_the_image(pipe: TextToImage, image: Image.Image) -> None:
    given = pipe.pipeline.autoencoder
    with torch.no_grad():
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
        [copy] = pipe.decode(given.encode(pixels).mode())
    distances = [np.abs(draw(pipe, image=image, strength=s) - np.asarray(copy)).mean() for s in (0.2, 0.6, 1.0)]
    assert distances[0] < distances[1] < distances[2]


def test_an_image_is_noised_to_the_first_level_that_is_visited(pipe: TextToImage, image: Image.Image) -> None:
    request = Request(prompts=("a red dog",), num_inference_steps=10, image=image, strength=0.45)
    grid = pipe.grid(request)
    assert len(grid) == 4
    assert grid.levels == pipe.grid(Request(prompts=("a red dog",), num_inference_steps=10)).levels[-5:]
    given = InitImage(image, None, (24, 16), False, pipe.pipeline.autoencoder, pipe.device)
    noise = torch.randn(2, *given.latents.shape[1:])
    level = grid.levels[0]
    expected = level.alpha * given.latents + level.sigma * noise
    torch.testing.assert_close(given.noisy(grid, noise), expected.float())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_the_mask_keeps_is_kept_by_every_sampler(
    pipe: TextToImage, image: Image.Image, mask: Image.Image, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    decode = pipe.decode
    monkeypatch.setattr(pipe, "decode", lambda latents, dtype: [seen.append(latents), decode(latents)][1])
    generated = draw(pipe, image=image, mask=mask, sampler=sampler)
    stays = np.asarray(mask) == 0
    assert np.array_equal(generated[stays], np.asarray(image)[stays])
    assert np.abs(generated[~stays] - np.asarray(image)[~stays]).mean() > 5
    given = InitImage(image, mask, (24, 16), False, pipe.pipeline.autoencoder, pipe.device)
    kept = (given.regenerated == 0).expand_as(given.latents)
    assert kept.float().mean() == pytest.approx(4 / 12)  # latents of 8 columns of the 9 that stay
    torch.testing.assert_close(seen[0][kept], given.latents[kept], rtol=1e-4, atol=1e-4)


def test_guidance_on_an_interval_costs_a_second_half_only_there(
    pipe: TextToImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    denoise = pipe.pipeline.denoiser.denoise
    monkeypatch.setattr(
        pipe.pipeline.denoiser, "denoise", lambda x, *rest: [calls.append(len(x)), denoise(x, *rest)][1]
    )
    levels = pipe.grid(Request(prompts=("a",), num_inference_steps=STEPS)).levels[:-1]
    ratios = [float(level.sigma / level.alpha) for level in levels]
    low, high = ratios[3], ratios[1]
    draw(pipe, guidance_interval=(low, high))
    assert calls == [2 if low < ratio <= high else 1 for ratio in ratios]
    assert sorted(set(calls)) == [1, 2]
    whole = draw(pipe, guidance_interval=(0, float("inf")))
    assert np.array_equal(whole, draw(pipe))
    assert np.array_equal(draw(pipe, guidance_interval=(0, 1e-9)), draw(pipe, guidance_scale=1))


def test_a_size_scales_the_image_and_none_only_cuts_it() -> None:
    pixels = np.arange(18 * 26, dtype=np.uint8).reshape(18, 26)
    image = Image.fromarray(pixels)
    assert np.array_equal(np.asarray(cut(image, (24, 16))), pixels[1:17, 1:25])
    assert cover(image, (24, 16)).size == (24, 16)
    assert cover(image, (52, 18)).size == (52, 18)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strength": 0.5}, "give one"),
        ({"image": True, "strength": 0.0}, "not above 0"),
        ({"image": True, "strength": 0.01}, "less than one step"),
        ({"image": True, "mask": Image.new("L", (8, 8))}, "must be equal"),
        ({"guidance_interval": (2.0, 1.0)}, "two increasing values"),
        ({"guidance_interval": (1.0, 2.0), "guidance_scale": 1}, "needs guidance"),
    ],
)
def test_invalid_combinations_raise_errors(
    pipe: TextToImage, image: Image.Image, options: dict[str, Any], words: str
) -> None:
    given = {name: image if value is True else value for name, value in options.items()}
    with pytest.raises(UserError, match=words):
        draw(pipe, **given)


def test_a_file_that_is_no_image_raises_an_error(tmp_path: Path) -> None:
    path = tmp_path / "words.png"
    path.write_text("words")
    with pytest.raises(UserError, match="cannot be read"):
        read_image(path)


def test_a_pipeline_goes_in_the_tiles_asked_for(pipe: TextToImage, image: Image.Image) -> None:
    vae = pipe.pipeline.autoencoder
    side = 16 * vae.config.downsampling_factor
    tiled = TextToImage(pipe.pipeline, tile=side, prepare=False)
    latents = torch.randn(1, 4, 24, 40, generator=torch.Generator().manual_seed(0))
    [made], [whole] = tiled.decode(latents), pipe.decode(latents)
    pixels = decode_tiled(vae, latents, Tiling(16, 4))[0].permute(1, 2, 0)
    expected = ((pixels.clamp(-1, 1) + 1) * 127.5).round().numpy()
    assert np.array_equal(np.asarray(made), expected)
    assert not np.array_equal(np.asarray(made), np.asarray(whole))
    request = Request(prompts=("a",), image=image.resize((4 * side, 2 * side)), size=(4 * side, 2 * side))
    given, pixels = (
        make_init_image(request, tiled.pipeline, vae, request.size, side),
        torch.from_numpy(np.array(request.image)).permute(2, 0, 1)[None],
    )
    assert torch.equal(given.latents, encode_tiled(vae, pixels / 127.5 - 1, Tiling(16, 4)).mode())
    with pytest.raises(UserError, match=f"tile is {side + 1}"):
        TextToImage(pipe.pipeline, tile=side + 1)
