"""Quality presets: precedence of explicit options, how often deep features are computed, and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from PIL import Image
from tiny_models import CAPTIONS, random_pipeline

from ldm.cli.generate import generate
from ldm.devices import computes_bfloat16
from ldm.errors import UserError
from ldm.generation import Request, TextToImage
from ldm.generation.deepcache import DeepCacheUNet
from ldm.generation.prepared_cache import PreparedCache
from ldm.generation.quality import PRESETS
from ldm.models.unet.unet import UNet

CPU = torch.device("cpu")
DOG = CAPTIONS[0]
FAST_TYPE = torch.bfloat16 if computes_bfloat16(CPU) else None


@pytest.fixture(scope="module")
def pipe() -> TextToImage:
    return TextToImage(random_pipeline(), prepare=False)


def draw(pipe: TextToImage, **options: Any) -> list[np.ndarray]:
    return [np.asarray(image).astype(int) for image in pipe(**{"prompt": DOG, "num_inference_steps": 4} | options)]


@pytest.mark.parametrize("sampler", ["ddim", "heun", "unipc"])
def test_deepcache_1_is_off_bit_for_bit(pipe: TextToImage, sampler: str) -> None:
    assert np.array_equal(draw(pipe, sampler=sampler), draw(pipe, sampler=sampler, deepcache=1))
    assert not np.array_equal(draw(pipe, sampler=sampler), draw(pipe, sampler=sampler, deepcache=2))


@pytest.mark.parametrize(
    ("options", "computed"),
    [
        ({"deepcache": 2}, "#.#.#"),
        ({"deepcache": 3}, "#..#."),
        ({"deepcache": 2, "sampler": "dpmpp-2m"}, "#.#.#"),
        ({"deepcache": 2, "timesteps": [999, 500, 1]}, "#.#"),
        # Heun's two calls of a step, at its level and at the next, but in the first step, from no signal, and the last.
        ({"deepcache": 2, "sampler": "heun"}, "#.##..##"),
        # Guided at the two levels in the middle: each denoiser has features of its own, which may be too old.
        ({"deepcache": 2, "num_inference_steps": 4, "guidance_interval": (0.8, 6.0)}, "##.#"),
    ],
)
def test_deep_features_are_computed_at_every_nth_level(
    pipe: TextToImage, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], computed: str
) -> None:
    found: list[str] = []
    denoise, shallow = UNet.denoise, DeepCacheUNet._shallow

    def counted(mark: str, function: Any) -> Any:
        return lambda *given: found.append(mark) or function(*given)

    monkeypatch.setattr(UNet, "denoise", counted("#", denoise))
    monkeypatch.setattr(DeepCacheUNet, "_shallow", counted(".", shallow))
    pipe(DOG, **{"num_inference_steps": None if "timesteps" in options else 5} | options)
    assert "".join(found) == computed


@pytest.mark.parametrize("quality", PRESETS)
def test_an_image_does_not_depend_on_its_batch(pipe: TextToImage, quality: str) -> None:
    together, apart = (
        draw(
            pipe, num_images=3, seed=5, quality=quality, deepcache=2, num_inference_steps=5, dtype=torch.float32, **more
        )
        for more in ({}, {"batch_size": 1})
    )
    assert all(np.abs(one - other).max() <= 1 for one, other in zip(together, apart, strict=True))


def test_deepcache_works_with_an_image_a_mask_and_concatenated_inputs(pipe: TextToImage) -> None:
    image = Image.radial_gradient("L").resize((16, 16)).convert("RGB")
    for more in ({"strength": 0.8}, {"mask": Image.new("L", (16, 16), 255)}):
        exact, cheap = (draw(pipe, image=image, deepcache=deepcache, **more)[0] for deepcache in (1, 2))
        assert 0 < np.abs(exact - cheap).mean() < 30


@pytest.mark.parametrize("quality", PRESETS)
def test_a_quality_is_what_it_says_for_options_that_are_not_given(pipe: TextToImage, quality: str) -> None:
    chosen = PRESETS[quality]
    resolved = pipe.resolve(Request(prompts=(DOG,), quality=quality))
    assert resolved.num_inference_steps == len(pipe.grid(resolved)) == chosen.num_inference_steps
    assert (resolved.sampler, resolved.deepcache) == (chosen.sampler, 1)
    assert resolved.guidance_interval is None
    assert resolved.dtype == (FAST_TYPE if chosen.half else None)
    assert pipe.resolve(resolved) == resolved


def test_options_that_are_given_override_a_quality(pipe: TextToImage) -> None:
    given = {
        "num_inference_steps": 7,
        "sampler": "heun",
        "guidance_interval": (0.0, float("inf")),
        "deepcache": 3,
        "dtype": torch.float32,
    }
    resolved = pipe.resolve(Request(prompts=(DOG,), quality="draft", **given))
    assert {name: getattr(resolved, name) for name in given} == given
    same = {"num_inference_steps": 30, "sampler": "ddim", "guidance_interval": (0, float("inf")), "deepcache": 1}
    exact = pipe(DOG)[0]
    assert np.array_equal(exact, pipe(DOG, quality="draft", dtype=torch.float32, **same)[0])


def test_a_quality_yields_to_options_that_exclude_its_own(pipe: TextToImage) -> None:
    resolved = pipe.resolve(Request(prompts=(DOG,), quality="draft", timesteps=(999, 500), eta=0.5))
    assert (resolved.num_inference_steps, resolved.sampler, resolved.eta) == (2, "ddim", 0.5)
    assert pipe.resolve(Request(prompts=(DOG,), quality="draft", guidance_scale=1.0)).guidance_interval is None
    unconditional = TextToImage(tiny.unconditional("kl"))
    assert unconditional.resolve(Request(quality="draft")).guidance_interval is None


def test_a_network_in_another_dtype_is_prepared_once_and_again_after_the_model_changes() -> None:
    unet, ready = random_pipeline().denoiser, PreparedCache[UNet]()
    half = ready.get(unet, torch.bfloat16)
    assert (half.dtype, unet.dtype, ready.get(unet).dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert ready.get(unet, torch.bfloat16) is half
    with torch.no_grad():
        unet.conv_in.bias += 1
    again = ready.get(unet, torch.bfloat16)
    assert again is not half
    assert torch.equal(again.conv_in.bias, unet.conv_in.bias.bfloat16())


@pytest.mark.parametrize("kind", [tiny.unconditional("kl"), random_pipeline()])
def test_bfloat16_changes_an_image_little(kind: Any) -> None:
    pipe, prompts = TextToImage(kind), (DOG,) if "text" in kind.conditionings else ()
    exact, half = (
        np.asarray(pipe(prompts, num_inference_steps=4, dtype=t)[0]).astype(int) for t in (None, torch.bfloat16)
    )
    assert 0 < np.abs(exact - half).mean() < 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": "best"}, "no quality 'best': choose one of exact, fast, draft"),
        ({"deepcache": 0}, "deepcache is 0: it must be at least 1"),
        (
            {"deepcache": 2, "clip": object()},
            "deepcache is 2, but CLIP guidance needs gradients: set deepcache to 1",
        ),
    ],
)
def test_invalid_combinations_raise_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Request(**options)


def test_png_metadata_records_the_quality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipe: TextToImage) -> None:
    monkeypatch.setattr(TextToImage, "from_pretrained", lambda *options, **more: pipe)
    generate([DOG], quality="draft", num_inference_steps=3, deepcache=2, dtype="float32", out=tmp_path / "x.png")
    metadata = json.loads(Image.open(tmp_path / "x.png").text["ldm"])  # type: ignore[attr-defined]
    expected = {"quality": "draft", "steps": 3, "sampler": PRESETS["draft"].sampler, "deepcache": 2, "dtype": "float32"}
    assert {name: metadata[name] for name in expected} == expected
