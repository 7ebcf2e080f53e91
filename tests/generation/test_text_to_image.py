"""TextToImage with tiny random networks: what an image depends on, what it costs, and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import CAPTIONS, random_pipeline
from torch import Tensor

from ldm.cli.generate import generate
from ldm.diffusion.grids import SPACINGS
from ldm.errors import UserError
from ldm.generation import Request, SeededNoise, TextToImage, find_device
from ldm.registry import SAMPLERS


@pytest.fixture(scope="module")
def pipe() -> TextToImage:
    return TextToImage(random_pipeline())


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def assert_equal(images: list[Image.Image], others: list[Image.Image]) -> None:
    """Equal but for the rounding of convolutions that run over other batch sizes."""
    for image, other in zip(images, others, strict=True):
        assert np.abs(pixels(image) - pixels(other)).max() <= 1


def differ(image: Image.Image, other: Image.Image) -> bool:
    return bool(np.abs(pixels(image) - pixels(other)).max() > 8)


def draw(pipe: TextToImage, prompt: Any = "a red dog", **options: Any) -> list[Image.Image]:
    return pipe(prompt, **({"num_inference_steps": 4} | options))


def test_images_are_rgb_of_the_size_learned(pipe: TextToImage) -> None:
    (image,) = draw(pipe)
    assert (image.mode, image.size) == ("RGB", (16, 16))
    assert pixels(image).std() > 5


def test_a_size_is_width_and_height(pipe: TextToImage) -> None:
    assert draw(pipe, size=(24, 16))[0].size == (24, 16)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_image_depends_on_its_seed_alone_not_on_its_batch(pipe: TextToImage, eta: float) -> None:
    together = draw(pipe, num_images=4, seed=5, eta=eta)
    assert_equal(together, draw(pipe, num_images=4, seed=5, eta=eta, batch_size=3))
    assert_equal(together, [draw(pipe, seed=5 + i, eta=eta)[0] for i in range(4)])
    assert all(differ(together[0], other) for other in together[1:])


def test_the_images_of_several_prompts_have_seeds_in_order(pipe: TextToImage) -> None:
    both = draw(pipe, CAPTIONS[:2], num_images=2, seed=3)
    pairs = zip([CAPTIONS[0]] * 2 + [CAPTIONS[1]] * 2, range(3, 7), strict=True)
    assert_equal(both, [draw(pipe, prompt, seed=seed)[0] for prompt, seed in pairs])
    assert differ(both[0], both[2])


def test_the_same_call_gives_the_same_bytes(pipe: TextToImage) -> None:
    first, second = (draw(pipe, eta=0.5)[0] for _ in range(2))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_generates_images(pipe: TextToImage, name: str) -> None:
    (image,) = draw(pipe, sampler=name)
    assert pixels(image).std() > 5
    assert differ(image, draw(pipe)[0]) is (name not in ("ddim", "euler"))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_spacing_generates_images(pipe: TextToImage, spacing: str) -> None:
    (image,) = draw(pipe, spacing=spacing, sampler="heun", num_inference_steps=5)
    assert pixels(image).std() > 5
    assert differ(image, draw(pipe, sampler="heun", num_inference_steps=5)[0]) is (spacing != "trailing")


def test_a_list_of_timesteps_defines_the_grid(pipe: TextToImage) -> None:
    assert_equal(draw(pipe, timesteps=[999, 749, 499, 249]), draw(pipe))
    assert differ(draw(pipe, timesteps=[999, 700.5, 300, 20])[0], draw(pipe)[0])


def test_ddpm_is_ddim_with_eta_1(pipe: TextToImage) -> None:
    assert_equal(draw(pipe, sampler="ddpm"), draw(pipe, sampler="ddim", eta=1.0))
    assert differ(draw(pipe, sampler="ddpm")[0], draw(pipe)[0])


@pytest.mark.parametrize(("scale", "batch"), [(1.0, 2), (3.0, 4)])
def test_a_step_costs_one_network_call_and_constants_are_computed_once(
    pipe: TextToImage, monkeypatch: pytest.MonkeyPatch, scale: float, batch: int
) -> None:
    batches: list[int] = []
    calls = {"embed_time": 0, "project_context": 0}
    unet = pipe.pipeline.denoiser
    denoise = unet.denoise

    def counted(name: str) -> Any:
        original = getattr(unet, name)

        def call(*arguments: Tensor) -> Any:
            calls[name] += 1
            return original(*arguments)

        return call

    for name in calls:
        monkeypatch.setattr(unet, name, counted(name))
    monkeypatch.setattr(unet, "denoise", lambda x, *rest: batches.append(len(x)) or denoise(x, *rest))
    draw(pipe, num_images=2, guidance_scale=scale, num_inference_steps=5)
    assert batches == [batch] * 5
    assert calls == {"embed_time": 1, "project_context": 1}


def test_prompt_negative_prompt_and_scale_change_the_image(pipe: TextToImage) -> None:
    (plain,) = draw(pipe)
    assert differ(plain, draw(pipe, "two blue cats")[0])
    assert differ(plain, draw(pipe, negative_prompt="two blue cats", guidance_scale=8.0)[0])
    assert differ(plain, draw(pipe, guidance_scale=1.0)[0])
    assert differ(draw(pipe, guidance_scale=8.0)[0], draw(pipe, guidance_scale=8.0, guidance_rescale=0.7)[0])


def test_given_latents_are_what_sampling_starts_from(pipe: TextToImage) -> None:
    latents = SeededNoise([7, 8])(torch.empty(2, 4, 8, 8))
    assert_equal(draw(pipe, num_images=2, latents=latents, batch_size=1), draw(pipe, num_images=2, seed=7))
    wide = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    assert draw(pipe, latents=wide)[0].size == (24, 16)


def test_progress_reports_every_step_of_every_batch(pipe: TextToImage) -> None:
    reported: list[tuple[int, int]] = []
    draw(pipe, num_images=3, batch_size=2, progress=lambda done, total: reported.append((done, total)))
    assert reported == [(i, 8) for i in range(1, 9)]


def test_images_come_as_soon_as_their_batch_is_done(pipe: TextToImage) -> None:
    reported: list[int] = []
    request = Request(prompts=("a red dog",), num_images=2, batch_size=1, num_inference_steps=4)
    images = pipe.generate(pipe.resolve(request), progress=lambda done, total: reported.append(done))
    next(images)
    assert reported == [1, 2, 3, 4]


def test_networks_in_bfloat16_generate_nearly_the_same_image(pipe: TextToImage) -> None:
    pipeline = random_pipeline()
    for network in pipeline.modules.values():
        network.to(torch.bfloat16)
    half, full = (pixels(draw(each, guidance_scale=1.0)[0]) for each in (TextToImage(pipeline), pipe))
    assert 0 < np.abs(half - full).mean() < 8  # of 255, from random networks that amplify every rounding


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0: it must be at least 1"),
        ({"num_inference_steps": 1001}, "1001 sampling steps.*1 to 1000"),
        ({"num_images": 0}, "num_images is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"eta": 1.5}, "eta 1.5 is not between 0"),
        ({"eta": float("nan")}, "eta nan is not between 0"),
        ({"sampler": "ddpm", "eta": 0.0}, "sampler ddpm has eta 1, not 0"),
        ({"sampler": "heun", "eta": 0.0}, "sampler heun has no eta: that is an option of sampler ddim"),
        ({"sampler": "dimm"}, "no sampler 'dimm': did you mean 'ddim'"),
        ({"spacing": "karas"}, "unknown spacing 'karas': choose one of leading, "),
        ({"timesteps": ()}, "timesteps : give at least one"),
        ({"timesteps": (500, 500)}, "timesteps 500, 500: give at least one, in decreasing order"),
        ({"timesteps": (500, -1)}, "timesteps 500, -1: give at least one, in decreasing order"),
        (
            {"timesteps": (1000.0, 3.5), "num_inference_steps": 2},
            "timestep 1000 is out of range: the model was trained with 0 to 999",
        ),
        ({"timesteps": (9, 8, 7)}, "4 steps, but 3 timesteps"),
        ({"timesteps": (9, 8, 7, 6), "spacing": "karras"}, "spacing karras and timesteps are given"),
        ({"guidance_scale": float("nan")}, "guidance scale nan"),
        ({"guidance_scale": float("inf")}, "guidance scale inf"),
        ({"guidance_scale": 1.0, "negative_prompt": "a cat"}, "a negative prompt needs guidance"),
        ({"guidance_rescale": 2.0}, "guidance_rescale 2.0"),
        ({"seed": -1}, "seed -1 is not between"),
        ({"seed": 2**63}, "is not between"),
        ({"size": (18, 16)}, "size 18x16: width and height must be multiples of 4 for this model"),
        ({"size": (0, 16)}, "size 0x16"),
        ({"latents": torch.zeros(2, 4, 8, 8)}, r"latents are \(2, 4, 8, 8\): 16x16 images need \(1, 4, 8, 8\)"),
        ({"latents": torch.zeros(1, 4, 8, 8), "size": (24, 16)}, r"24x16 images need \(1, 4, 8, 12\)"),
        ({"latents": torch.zeros(1, 4, 8, 7)}, "size 14x16"),
    ],
)
def test_invalid_options_raise_an_error_of_one_line(pipe: TextToImage, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw(pipe, **options)


def test_no_prompt_raises_an_error(pipe: TextToImage) -> None:
    with pytest.raises(UserError, match="generates from text: give a PROMPT"):
        draw(pipe, [])


def test_an_unknown_device_raises_an_error() -> None:
    assert find_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="no device 'abacus'"):
        find_device("abacus")


@pytest.fixture(scope="module")
def saved(pipe: TextToImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    pipe.save_pretrained(folder)
    return folder


def test_a_saved_pipeline_generates_the_same_images(pipe: TextToImage, saved: Path) -> None:
    again = TextToImage.from_pretrained(saved, device="cpu")
    assert draw(again)[0].tobytes() == draw(pipe)[0].tobytes()


def test_the_command_writes_the_images_of_the_pipeline(pipe: TextToImage, saved: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_images": 2, "seed": 4, "num_inference_steps": 4, "guidance_scale": 2.0}
    options |= {"negative_prompt": "two blue cats"}
    generate(CAPTIONS[:2], model=str(saved), size="24x16", device="cpu", out=tmp_path, **options)
    images = [Image.open(path) for path in sorted(tmp_path.iterdir(), key=lambda path: path.stem[-1])]
    expected = draw(
        pipe, CAPTIONS[:2], num_images=2, seed=4, guidance_scale=2.0, negative_prompt="two blue cats", size=(24, 16)
    )
    assert [image.tobytes() for image in images] == [image.tobytes() for image in expected]
