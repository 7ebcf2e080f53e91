"""Models that vary an image: their images, errors and folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from PIL import Image

from ldm.checkpoint.compvis.folders import read_folder
from ldm.checkpoint.diffusers.pipeline import load_pipeline
from ldm.conditioning.image.conditioning import ImageEmbedding
from ldm.conditioning.image.encoders import CLIP_MEAN, CLIP_STD, CLIPImageConfig, make_image_encoder
from ldm.conditioning.image.files import load_image_encoder, load_source
from ldm.errors import UserError
from ldm.generation import Request, TextToImage


def scene(seed: int, side: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(256, size=(side, side, 3), dtype=np.uint8))


def draw(pipe: TextToImage, **options: Any) -> list[np.ndarray]:
    return [np.asarray(image).astype(int) for image in pipe(**{"num_inference_steps": 3} | options)]


@pytest.mark.parametrize("make", [tiny.variations, tiny.own_variations])
def test_a_variation_depends_on_its_image_and_seed_not_on_its_batch(make: Any) -> None:
    pipe = TextToImage(make())
    together = draw(pipe, image=scene(0), num_images=3, seed=4, batch_size=3)
    assert np.abs(draw(pipe, image=scene(0), seed=5)[0] - together[1]).max() <= 1
    assert np.abs(draw(pipe, image=scene(1), seed=5)[0] - together[1]).max() > 8
    assert np.abs(together[0] - together[1]).max() > 8
    assert np.abs(draw(pipe, image=scene(0, 48), seed=4)[0].shape[0]) == 32  # of the size that the model learned


def test_a_strength_starts_from_the_image_and_varies_it_as_well() -> None:
    pipe = TextToImage(tiny.own_variations())
    near, far = (draw(pipe, image=scene(0), strength=s, num_inference_steps=20)[0] for s in (0.1, 1.0))
    given = np.asarray(pipe.decode(pipe.pipeline.autoencoder.encode(pixels(scene(0))).mode())[0]).astype(int)
    assert np.abs(near - given).mean() < np.abs(far - given).mean()
    assert (
        np.abs(
            draw(pipe, image=scene(0), strength=0.5, guidance_scale=9.0)[0]
            - draw(pipe, image=scene(0), strength=0.5)[0]
        ).max()
        > 8
    )
    resolved = pipe.resolve(Request(image=scene(0)))
    assert (resolved.image, resolved.guidance_scale) == (None, 3.0)
    assert pipe.resolve(resolved) == resolved


def test_an_image_to_vary_cannot_be_combined_with_an_initial_image(tmp_path: Path) -> None:
    pipeline = tiny.with_spatial(tiny.own_variations(), kind="segmentation_map", in_channels=5, channels=4, stages=1)
    with pytest.raises(UserError, match="image and spatial would need two images for each sample"):
        pipeline.check(tmp_path)


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1


def test_guidance_is_away_from_zeros() -> None:
    pipe = TextToImage(tiny.own_variations())
    request = pipe.resolve(Request(image=scene(0)))
    positive, negative = pipe.encode_cond_and_uncond([None, None], request)
    assert positive.context is not None
    assert negative is not None
    assert positive.context.shape == (2, 3, 32)
    assert torch.equal(negative.context, torch.zeros(1, 3, 32))
    assert not torch.equal(positive.context, torch.zeros(2, 3, 32))


def test_our_own_encoder_hardly_knows_where_things_are() -> None:
    encoder = tiny.own_variations().modules["image_encoder"]
    latents = torch.zeros(1, 4, 16, 16)
    latents[..., 4:8, 4:8] = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        here, there = encoder(latents), encoder(latents.roll((4, 4), (2, 3)))
        other = encoder(-latents)
    assert (here - there).abs().mean() < 0.1 * (here - other).abs().mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "generates variations of an image: give one"),
        ({"prompt": "a dog", "image": True}, "it does not use prompts"),
        ({"classes": 1, "image": True}, "it does not use classes"),
        ({"long_prompts": True, "image": True}, "it does not use long_prompts"),
        ({"strength": 0.5}, "give one"),
    ],
)
def test_invalid_combinations_raise_errors(options: dict[str, Any], message: str) -> None:
    pipe = TextToImage(tiny.own_variations())
    options = options | ({"image": scene(0)} if options.get("image") else {})
    with pytest.raises(UserError, match=message):
        draw(pipe, **options)


def test_other_models_vary_no_image() -> None:
    for pipeline, inputs in ((tiny.sd_1(), {"prompts": ("a dog",)}), (tiny.of_classes(), {"classes": (1,)})):
        with pytest.raises(UserError, match="it does not use reference"):
            TextToImage(pipeline).resolve(Request(reference=scene(0), **inputs))


@pytest.mark.parametrize("make", [tiny.variations, tiny.own_variations])
def test_a_saved_model_is_the_same_when_it_comes_back(make: Any, tmp_path: Path) -> None:
    pipeline = make()
    pipe = TextToImage(pipeline)
    pipe.save_pretrained(tmp_path)
    back = load_pipeline(tmp_path)
    own, theirs = (each.modules["image_encoder"] for each in (back, pipeline))
    assert own.config == theirs.config
    for name, weight in theirs.state_dict().items():
        assert torch.equal(own.state_dict()[name], weight)
    options = {"image": scene(0), "seed": 3}
    assert np.abs(draw(TextToImage(back), **options)[0] - draw(pipe, **options)[0]).max() <= 1


def test_no_single_file_is_written_of_it(tmp_path: Path) -> None:
    TextToImage(tiny.own_variations()).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="generates variations of an image: CompVis files have no such model"):
        read_folder(tmp_path)


def test_an_encoder_that_does_not_fit_raises_an_error(tmp_path: Path) -> None:
    pipeline = tiny.own_variations()
    config = pipeline.modules["image_encoder"].config.model_copy(update={"in_channels": 5})
    pipeline = pipeline.with_modules({"image_encoder": make_image_encoder(config)})
    TextToImage(pipeline).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"image\.in_channels is 5, but autoencoder\.latent_channels is 4"):
        load_pipeline(tmp_path)


def test_a_source_decides_the_sizes_that_are_not_given(tmp_path: Path) -> None:
    TextToImage(tiny.variations()).save_pretrained(tmp_path)
    for source in (tmp_path, tmp_path / "image_encoder"):
        found = load_source(CLIPImageConfig(source=str(source)))
        assert found.config.projection_dim == 32
    with pytest.raises(UserError, match=r"image\.projection_dim is 64, there 32"):
        load_source(CLIPImageConfig(source=str(tmp_path), projection_dim=64))


@pytest.mark.slow
def test_clip_sees_what_transformers_clip_sees(tmp_path: Path) -> None:
    from transformers import CLIPConfig as TheirConfig
    from transformers import CLIPImageProcessor, CLIPModel, CLIPVisionModelWithProjection

    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = sizes | {"image_size": 32, "patch_size": 8, "hidden_act": "gelu"}
    torch.manual_seed(0)
    whole = CLIPModel(
        TheirConfig(text_config=sizes | {"vocab_size": 9}, vision_config=vision, projection_dim=16)
    ).eval()
    tiny.speaking(whole)
    whole.save_pretrained(tmp_path / "whole")
    alone = whole.config.vision_config
    alone.projection_dim = 16  # which a whole CLIP says outside of it
    half = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "whole", config=alone).eval()
    half.save_pretrained(tmp_path / "half")
    pipe = TextToImage(tiny.variations())
    pipe.save_pretrained(tmp_path / "pipeline")
    processor = CLIPImageProcessor.from_pretrained(tmp_path / "pipeline" / "feature_extractor")
    for name in ("whole", "half"):
        encoder = load_image_encoder(tmp_path / name)
        conditioning = ImageEmbedding(encoder)
        with torch.no_grad():
            expected = half(processor(images=scene(5), return_tensors="pt").pixel_values).image_embeds
            given = conditioning._given(scene(5), pipe.pipeline)
            torch.testing.assert_close(encoder(given)[:, 0], expected, rtol=1e-4, atol=1e-5)
        scaled = conditioning._given(scene(5, 45), pipe.pipeline)
        theirs = processor(images=scene(5, 45), return_tensors="pt").pixel_values
        mean, deviation = (torch.tensor(three)[:, None, None] for three in (CLIP_MEAN, CLIP_STD))
        levels = (theirs * deviation + mean - (scaled + 1) / 2).abs() * 255
        assert levels.max() < 1.01  # Pillow and torchvision round otherwise
        assert levels.mean() < 0.05


@pytest.mark.slow
def test_diffusers_generates_the_same_variations(tmp_path: Path) -> None:
    from diffusers import DDIMScheduler, StableDiffusionImageVariationPipeline

    pipe, image = TextToImage(tiny.variations()), scene(1)
    pipe.save_pretrained(tmp_path / "ours")
    theirs = StableDiffusionImageVariationPipeline.from_pretrained(tmp_path / "ours")
    assert isinstance(theirs.scheduler, DDIMScheduler)
    theirs.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    expected = theirs(
        image, height=32, width=32, num_inference_steps=5, guidance_scale=4.0, latents=latents, output_type="np"
    ).images[0]
    [found] = pipe(image=image, num_inference_steps=5, guidance_scale=4.0, latents=latents)
    error = np.square(np.asarray(found) / 255 - expected).mean()
    assert -10 * np.log10(error) > 50  # dB; rounding to bytes alone is 59
    theirs.save_pretrained(tmp_path / "theirs")
    back = TextToImage.from_pretrained(tmp_path / "theirs", device="cpu")
    [again] = back(image=image, num_inference_steps=5, guidance_scale=4.0, latents=latents)
    assert np.abs(np.asarray(again).astype(int) - np.asarray(found)).max() <= 1
