"""Drawing with an image beside the latents: a layout, a hole to fill, a small image to make larger."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from PIL import Image
from torch import Tensor

from ldm.checkpoint.pipeline import Pipeline
from ldm.conditioning.segmentation_map import one_hot
from ldm.errors import UserError
from ldm.generation import Composed, TextToImage

STEPS = 2
PROMPT = "a red dog"


@pytest.fixture(scope="module")
def pipes() -> dict[str, TextToImage]:
    made = {"text": tiny.bert(), "layout": tiny.layout(), "inpainting": tiny.inpainting()}
    return {name: TextToImage(pipeline) for name, pipeline in (made | {"larger": tiny.super_resolution()}).items()}


def classes(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(5, size=(height, width), dtype=np.uint8))


def random_image(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8))


def left_half(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.repeat([[255] * (width // 2) + [0] * (width - width // 2)], height, 0).astype(np.uint8))


def inputs_of_the_unet(pipe: TextToImage, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What goes into the U-Net from now on."""
    seen: list[Tensor] = []
    denoise = pipe.pipeline.denoiser.denoise
    monkeypatch.setattr(pipe.pipeline.denoiser, "denoise", lambda x, *rest: seen.append(x) or denoise(x, *rest))
    return seen


def test_guidance_passes_the_rescaled_layout_to_both_halves(
    pipes: dict[str, TextToImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, layout = pipes["layout"], classes(48, 32)
    seen = inputs_of_the_unet(pipe, monkeypatch)
    images = pipe(PROMPT, layout=layout, num_inference_steps=STEPS, num_images=2)
    assert [image.size for image in images] == [(48, 32)] * 2
    assert [x.shape for x in seen] == [(4, 8, 16, 24)] * STEPS  # two images, each with and without the prompt
    with torch.no_grad():
        expected = pipe.pipeline.modules["spatial"](one_hot(torch.from_numpy(np.array(layout))[None], 5))[0]
    assert all(torch.allclose(row[4:], expected, atol=1e-6) for x in seen for row in x)


def test_every_text_of_a_composed_prompt_sees_the_layout(
    pipes: dict[str, TextToImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, both = pipes["layout"], Composed(((PROMPT, 1.0), ("a cat", 0.5)))
    seen = inputs_of_the_unet(pipe, monkeypatch)
    images = pipe([both, PROMPT], layout=classes(48, 32), num_inference_steps=1, batch_size=2)
    assert [x.shape for x in seen] == [(5, 8, 16, 24)]  # three texts, and what each image is guided away from
    assert all(torch.equal(row[4:], seen[0][0, 4:]) for row in seen[0])
    alone = pipe(PROMPT, seed=1, layout=classes(48, 32), num_inference_steps=1)[0]
    assert np.abs(np.asarray(alone).astype(int) - np.asarray(images[1])).max() <= 1


def test_another_layout_is_another_random_image(pipes: dict[str, TextToImage]) -> None:
    one, other = (
        np.asarray(pipes["layout"](PROMPT, layout=classes(32, 32, seed), num_inference_steps=STEPS)[0]).astype(int)
        for seed in (0, 1)
    )
    assert np.abs(one - other).mean() > 1


def test_a_layout_is_scaled_to_a_size_that_is_asked_for_without_new_classes(
    pipes: dict[str, TextToImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, layout = pipes["layout"], classes(32, 32)
    seen = inputs_of_the_unet(pipe, monkeypatch)
    twice = Image.fromarray(np.asarray(layout).repeat(2, 0).repeat(2, 1))
    first, second = (
        pipe(PROMPT, layout=each, num_inference_steps=1, guidance_scale=1.0, size=(64, 64))[0]
        for each in (layout, twice)
    )
    assert torch.equal(seen[0], seen[1])
    assert first.tobytes() == second.tobytes()


def test_a_palette_means_its_indices(pipes: dict[str, TextToImage], tmp_path: Path) -> None:
    layout = classes(32, 32)
    coloured = layout.copy()
    coloured.putpalette([index * 40 % 256 for index in range(15)])
    assert coloured.mode == "P"
    one, other = (pipes["layout"](PROMPT, layout=each, num_inference_steps=1)[0] for each in (layout, coloured))
    assert one.tobytes() == other.tobytes()


def test_what_a_mask_hides_never_reaches_the_network(
    pipes: dict[str, TextToImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, image, mask = pipes["inpainting"], random_image(32, 32), left_half(32, 32)
    other = image.copy()
    other.paste((1, 200, 30), (0, 0, 16, 32))  # all of it hidden
    seen = inputs_of_the_unet(pipe, monkeypatch)
    generated = [
        np.asarray(pipe(PROMPT, image=each, mask=mask, num_inference_steps=STEPS)[0]) for each in (image, other)
    ]
    assert np.array_equal(generated[0], generated[1])
    assert all(torch.equal(one, two) for one, two in zip(seen[:STEPS], seen[STEPS:], strict=True))
    assert torch.equal(seen[0][0, 4].unique(), torch.tensor([0.0, 1.0]))
    assert np.array_equal(generated[0][:, 16:], np.asarray(image)[:, 16:])  # what is not hidden stays as it was given
    assert np.abs(generated[0][:, :16].astype(int) - np.asarray(image)[:, :16]).mean() > 5


def test_less_strength_keeps_something_of_what_is_hidden(pipes: dict[str, TextToImage]) -> None:
    image, mask = random_image(32, 32), left_half(32, 32)
    other = image.copy()
    other.paste((1, 200, 30), (0, 0, 16, 32))
    generated = [
        np.asarray(pipes["inpainting"](PROMPT, image=each, mask=mask, num_inference_steps=4, strength=0.5)[0])
        for each in (image, other)
    ]
    assert np.abs(generated[0].astype(int) - generated[1]).mean() > 1


def test_a_small_image_has_as_many_pixels_as_there_are_latents(
    pipes: dict[str, TextToImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, image = pipes["larger"], random_image(21, 18)  # cut to what the U-Net can halve
    seen = inputs_of_the_unet(pipe, monkeypatch)
    [generated] = pipe(image=image, num_inference_steps=STEPS)
    assert generated.size == (40, 32)
    expected = torch.from_numpy(np.array(image.crop((0, 1, 20, 17)))).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(seen[0][0, 3:], expected, atol=1e-6)
    assert pipe(image=image, num_inference_steps=1, size=(64, 32))[0].size == (64, 32)  # that of the large one


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "it does not use layout": ("text", {"layout": classes(32, 32)}),
    "generates from a class map: give a PNG of 5 classes: background, dog, cat": ("layout", {}),
    "the layout has class 7, but this model has 5 classes": (
        "layout",
        {"layout": Image.new("L", (32, 32), 7)},
    ),
    "the layout has mode RGB: give a PNG of class numbers": ("layout", {"layout": random_image(32, 32)}),
    "the layout is 32x32, the image 16x32": ("layout", {"layout": classes(32, 32), "image": random_image(16, 32)}),
    "an inpainting model: give an image and a mask": ("inpainting", {"image": random_image(32, 32)}),
    "a super-resolution model: give a small image": ("larger", {}),
    "leave mask and strength out": ("larger", {"image": random_image(32, 32), "strength": 0.5}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_options_that_the_model_does_not_support_raise_an_error(pipes: dict[str, TextToImage], message: str) -> None:
    name, options = REFUSED[message]
    prompt = () if name == "larger" else PROMPT
    with pytest.raises(UserError, match=message):
        pipes[name](prompt, num_inference_steps=STEPS, **options)


def test_interpolation_needs_a_model_that_takes_no_images(pipes: dict[str, TextToImage]) -> None:
    from ldm.generation import Request, interpolate

    with pytest.raises(UserError, match="generates from a class map"):
        interpolate.between_seeds(pipes["layout"], PROMPT, 0, 1, 2, Request(prompts=(PROMPT,)))


def test_parts_that_do_not_fit_are_named() -> None:
    def expect_error(pipeline: Pipeline, message: str) -> None:
        with pytest.raises(UserError, match=message):
            pipeline.check(Path("here"))

    layout = tiny.layout()
    text = {"text": layout.conditionings["text"]}
    other = {"inpainting": tiny.inpainting().conditionings["inpainting"]}
    layout.check(Path("here"))
    expect_error(replace(layout, conditionings=text), r"unet.in_channels is 8, but autoencoder.latent_channels is 4")
    expect_error(
        replace(layout, conditionings=text | other),
        r"unet.in_channels is 8, but .*latent_channels \(4\) \+ spatial.channels \(5\) is 9",
    )
    deeper = tiny.with_spatial(tiny.bert(), kind="segmentation_map", in_channels=5, channels=4, stages=2)
    expect_error(deeper, "spatial.stages is 2, .* a map 4 times smaller, but latents are 2 times smaller")
    wider = tiny.with_spatial(tiny.bert(), kind="inpainting", in_channels=2, channels=5)
    expect_error(wider, r"spatial.channels is 5, but .*latent_channels \(4\) \+ spatial.in_channels is 6")
