"""Class-conditional and unconditional models, and two text encoders with sizes: images, cost and errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from PIL import Image
from torch import Tensor

from ldm.checkpoint.pipeline import Pipeline
from ldm.cli.generate import generate
from ldm.errors import UserError
from ldm.generation import Request, SizeConditioning, TextToImage

KINDS: dict[str, Callable[[], Pipeline]] = {
    "classes": tiny.of_classes,
    "own classes": lambda: tiny.unconditional(num_class_embeds=5),
    "unconditional": tiny.unconditional,
    "sdxl": tiny.sdxl,
    "sd 1": tiny.sd_1,
}


@pytest.fixture(scope="module")
def pipes() -> Callable[[str], TextToImage]:
    made: dict[str, TextToImage] = {}

    def pipe(name: str) -> TextToImage:
        return made.setdefault(name, made.get(name) or TextToImage(KINDS[name]()))

    return pipe


def draw(pipe: TextToImage, **options: Any) -> list[np.ndarray]:
    return [np.asarray(image).astype(int) for image in pipe(**{"num_inference_steps": 3} | options)]


def differ(image: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(image - other).max() > 8)


@pytest.mark.parametrize("name", ["classes", "own classes"])
def test_an_image_depends_on_class_and_seed_not_on_its_batch(name: str, pipes: Callable[[str], TextToImage]) -> None:
    pipe = pipes(name)
    together = draw(pipe, classes=[3, 0, 3], num_images=2, seed=4, batch_size=4)
    alone = [draw(pipe, classes=number, seed=4 + i)[0] for i, number in enumerate([3, 3, 0, 0, 3, 3])]
    assert all(np.abs(image - other).max() <= 1 for image, other in zip(together, alone, strict=True))
    assert differ(together[0], draw(pipe, classes=1, seed=4)[0])


@pytest.mark.parametrize("name", ["classes", "own classes"])
def test_guidance_is_away_from_the_negative_class(name: str, pipes: Callable[[str], TextToImage]) -> None:
    pipe = pipes(name)
    guided = draw(pipe, classes=2, negative_class=4)[0]
    assert differ(guided, draw(pipe, classes=2)[0])
    assert not differ(guided, draw(pipe, classes=2, negative_class=4, guidance_scale=3.0)[0])  # the default
    away_from_itself = draw(pipe, classes=2, negative_class=2, guidance_scale=5.0)[0]
    assert np.abs(away_from_itself - draw(pipe, classes=2)[0]).max() <= 1


def test_unconditional_images_depend_only_on_their_seed(pipes: Callable[[str], TextToImage]) -> None:
    pipe = pipes("unconditional")
    first, second = draw(pipe, num_images=2, seed=8)
    assert np.abs(draw(pipe, seed=9)[0] - second).max() <= 1
    assert differ(first, second)
    assert np.array_equal(draw(pipe, seed=8, guidance_scale=1.0)[0], draw(pipe, seed=8)[0])


@pytest.mark.parametrize(
    ("name", "options", "calls", "batch"),
    [
        ("sdxl", {"prompt": tiny.CAPTIONS}, 1, 4),
        ("sdxl", {"prompt": tiny.CAPTIONS, "guidance_scale": 1.0}, 1, 2),
        ("sdxl", {"prompt": tiny.CAPTIONS, "guidance_interval": (0.5, 2.0)}, 2, 4),
        ("own classes", {"classes": [1, 2], "negative_class": 0}, 1, 4),
        ("own classes", {"classes": [1, 2]}, 1, 2),
        ("unconditional", {"num_images": 2}, 1, 2),
    ],
)
def test_what_joins_the_time_is_embedded_once_a_prompt_for_all_steps(
    name: str,
    options: dict[str, Any],
    calls: int,
    batch: int,
    pipes: Callable[[str], TextToImage],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe, counted = pipes(name), {"embed_time": 0, "project_context": 0}
    unet, batches = pipe.pipeline.denoiser, []
    denoise = unet.denoise

    def count(method: str) -> Callable[..., Any]:
        original = getattr(unet, method)

        def call(*arguments: Any) -> Any:
            counted[method] += 1
            return original(*arguments)

        return call

    def denoised(x: Tensor, *rest: Any) -> Tensor:
        batches.append(len(x))
        return denoise(x, *rest)

    for method in counted:
        monkeypatch.setattr(unet, method, count(method))
    monkeypatch.setattr(unet, "denoise", denoised)
    draw(pipe, num_inference_steps=5, sampler="heun", **options)
    assert counted == {"embed_time": calls, "project_context": calls}
    assert max(batches) == batch


def test_both_texts_and_every_size_have_a_say(pipes: Callable[[str], TextToImage]) -> None:
    pipe = pipes("sdxl")
    plain = draw(pipe, prompt="a red dog")[0]
    assert np.array_equal(plain, draw(pipe, prompt="a red dog", size_conditioning=SizeConditioning())[0])
    assert np.array_equal(
        plain, draw(pipe, prompt="a red dog", size_conditioning=SizeConditioning((32, 32), (0, 0), (32, 32)))[0]
    )
    for size_conditioning in (
        SizeConditioning((64, 32)),
        SizeConditioning((32, 64)),
        SizeConditioning(corner=(9, 0)),
        SizeConditioning(target=(32, 16)),
    ):
        assert not np.array_equal(plain, draw(pipe, prompt="a red dog", size_conditioning=size_conditioning)[0])
    first, second = pipe.pipeline.conditionings["text"].encoders
    request = Request(prompts=("a red dog",))
    condition = pipe.encode_cond_and_uncond(["a red dog"], pipe.resolve(request))[0]
    for encoder, _ in (first, second):
        weight = next(encoder.parameters())
        before = weight.detach().clone()
        with torch.no_grad():
            weight.zero_()
        changed = pipe.encode_cond_and_uncond(["a red dog"], pipe.resolve(request))[0]
        with torch.no_grad():
            weight.copy_(before)
        assert condition.context is not None
        assert not torch.equal(condition.context, changed.context)
    assert condition.added is not None
    assert condition.added.sizes.tolist() == [[32, 32, 0, 0, 32, 32]]
    assert SizeConditioning((96, 64), (8, 2), (40, 36)).sizes((1, 1)) == [64, 96, 2, 8, 36, 40]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("classes", {}, r"generates from classes: give one of 0 to 4"),
        ("classes", {"prompt": "a dog"}, "on classes: it does not use prompts"),
        ("classes", {"classes": 1, "prompt": "a dog"}, "prompts and classes are given"),
        ("classes", {"classes": 1, "negative_prompt": "a dog", "negative_class": 0}, "it does not use negative_prompt"),
        ("classes", {"classes": 5}, "class 5: this model has classes 0 to 4"),
        ("classes", {"classes": [1, -1]}, "class -1"),
        ("own classes", {"classes": 1, "negative_class": 7}, "class 7"),
        ("classes", {"classes": 1, "guidance_scale": 2.0}, "give a negative class"),
        ("classes", {"classes": 1, "negative_class": 0, "guidance_scale": 1.0}, "a negative class needs guidance"),
        ("classes", {"classes": 1, "size_conditioning": SizeConditioning()}, "it does not use size_conditioning"),
        ("unconditional", {"prompt": "a dog"}, "it does not use prompts"),
        ("unconditional", {"classes": 1}, "it does not use classes"),
        ("unconditional", {"guidance_scale": 3.0}, "guidance_scale is 3, but this model is unconditional"),
        ("unconditional", {"negative_prompt": "a dog"}, "it does not use negative_prompt"),
        ("unconditional", {"guidance_interval": (0.1, 1.0)}, "a guidance interval needs guidance"),
        ("unconditional", {"size_conditioning": SizeConditioning()}, "it does not use size_conditioning"),
        ("sd 1", {}, "generates from text: give a PROMPT"),
        ("sd 1", {"classes": 1}, "on text: it does not use classes"),
        ("sd 1", {"prompt": "a dog", "negative_class": 1}, "on text: it does not use negative_class"),
        ("sd 1", {"prompt": "a dog", "size_conditioning": SizeConditioning()}, "no size and crop conditioning"),
    ],
)
def test_what_a_model_does_not_know_raises_an_error_of_one_line(
    name: str, options: dict[str, Any], message: str, pipes: Callable[[str], TextToImage]
) -> None:
    with pytest.raises(UserError, match=message):
        draw(pipes(name), **options)


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KINDS)
def test_half_precision_generates_nearly_the_same_image(
    name: str, dtype: torch.dtype, pipes: Callable[[str], TextToImage], tmp_path: Path
) -> None:
    kinds = pipes(name).pipeline.conditionings.keys()
    options: dict[str, Any] = {"prompt": "a red dog"} if "text" in kinds else {}
    options |= {"classes": 3} if {"classes", "class_table"} & kinds else {}
    pipes(name).save_pretrained(tmp_path)
    half = TextToImage.from_pretrained(tmp_path, dtype, "cpu")
    types = {name: {w.dtype for w in network.parameters()} for name, network in half.pipeline.modules.items()}
    assert types.pop("autoencoder") <= {dtype, torch.float32}
    assert set.union(*types.values()) == {dtype}
    image, other = draw(half, guidance_scale=1.0, **options)[0], draw(pipes(name), guidance_scale=1.0, **options)[0]
    assert np.abs(image - other).mean() < 8  # of 255, from random networks that amplify every rounding


def test_every_network_moves(pipes: Callable[[str], TextToImage]) -> None:
    for make in (tiny.sdxl, tiny.of_classes):
        pipe = TextToImage(make()).to("meta")
        tensors = [t for network in pipe.pipeline.modules.values() for t in (*network.parameters(), *network.buffers())]
        assert {tensor.device.type for tensor in tensors} == {"meta"}
        assert pipe.device.type == "meta"


def test_the_command_generates_classes_and_unconditional_images(
    pipes: Callable[[str], TextToImage], tmp_path: Path
) -> None:
    pipes("classes").save_pretrained(tmp_path / "classes")
    pipes("unconditional").save_pretrained(tmp_path / "nothing")
    options: dict[str, Any] = {"num_inference_steps": 3, "device": "cpu", "seed": 4}
    generate(model=str(tmp_path / "classes"), classes=[0, 3], negative_class=4, out=tmp_path / "a", **options)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["class-0-0.png", "class-3-1.png"]
    expected = draw(pipes("classes"), classes=[0, 3], negative_class=4, seed=4)
    for path, other in zip(sorted((tmp_path / "a").iterdir()), expected, strict=True):
        assert np.abs(np.asarray(Image.open(path)).astype(int) - other).max() <= 1
    facts = json.loads(Image.open(tmp_path / "a" / "class-0-0.png").text["ldm"])  # type: ignore[attr-defined]
    assert (facts["class"], facts["negative_class"], facts["guidance_scale"], facts["seed"]) == (0, 4, 3.0, 4)
    generate(model=str(tmp_path / "nothing"), num_images=2, out=tmp_path / "b", **options)
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["image-0.png", "image-1.png"]
    with pytest.raises(UserError, match="it does not use prompts"):
        generate(["a dog"], model=str(tmp_path / "nothing"), out=tmp_path / "b", **options)
