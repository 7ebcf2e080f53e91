"""Whole pipelines of every published kind: what we save draws the same images there, and what they save here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_pipelines as tiny
import torch

from ldm.checkpoint.pipeline import Pipeline
from ldm.conditioning.text.conditioning import TextConditioning
from ldm.generation import SizeConditioning, TextToImage

STEPS = 5
NEGATIVE = "two dogs"

TEXT: dict[str, tuple[str, Callable[[], Pipeline]]] = {
    "sd 1": ("StableDiffusionPipeline", tiny.sd_1),
    "sd 2": ("StableDiffusionPipeline", tiny.sd_2),
    "sd 2, zero snr": ("StableDiffusionPipeline", lambda: tiny.sd_2(tiny.ZERO_SNR_V)),
    "bert": ("StableDiffusionPipeline", tiny.bert),
    "sdxl": ("StableDiffusionXLPipeline", tiny.sdxl),
    "ldm": ("LDMTextToImagePipeline", tiny.ldm_text),
    "t5": ("StableDiffusionPipeline", tiny.t5),
    "ldm words vq": ("LDMTextToImagePipeline", tiny.ldm_words_vq),
    "ldm vq": ("LDMTextToImagePipeline", lambda: tiny.ldm_text("vq")),
}
SLOW = pytest.mark.slow
OFTEN = ("sd 1", "sd 2, zero snr", "sdxl", "ldm")
KINDS = [pytest.param(name, marks=[] if name in OFTEN else [SLOW]) for name in TEXT]
PLAIN: dict[str, Any] = {"guidance_scale": 1.0}
GUIDED: dict[str, Any] = {"guidance_scale": 4.0}
AWAY: dict[str, Any] = {"guidance_scale": 4.0, "negative_prompt": NEGATIVE}
RESCALED: dict[str, Any] = {"guidance_scale": 4.0, "guidance_rescale": 0.7}
OPTIONS = {"plain": PLAIN, "guided": GUIDED, "away": AWAY, "rescaled": RESCALED}


def psnr(image: Any, expected: np.ndarray) -> float:
    error = np.asarray(image) / 255 - np.round(expected * 255) / 255
    return float(10 * np.log10(1 / max(np.square(error).mean(), 1e-12)))


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("pipeline")
            TextToImage(TEXT[name][1]()).save_pretrained(made[name])
        return made[name]

    return folder


def loaded(name: str, folder: Path) -> Any:
    theirs = getattr(diffusers, TEXT[name][0]).from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    return theirs


def generated(theirs: Any, latents: torch.Tensor, **options: Any) -> np.ndarray:
    negative = options.pop("negative_prompt", None)
    options |= {} if negative is None else {"negative_prompt": [negative] * len(tiny.CAPTIONS)}
    return theirs(tiny.CAPTIONS, latents=latents, num_inference_steps=STEPS, output_type="np", **options).images


@pytest.mark.parametrize("name", KINDS)
def test_the_same_images_come_from_the_same_latents(name: str, folders: Callable[[str], Path]) -> None:
    theirs = loaded(name, folders(name))
    ours = TextToImage.from_pretrained(folders(name), device="cpu")
    side = ours.pipeline.denoiser.config.sample_size
    latents = noise(2, 4, side, side)
    for asked, options in OPTIONS.items():
        if name.startswith("ldm") and asked in ("away", "rescaled"):  # theirs knows neither
            continue
        images = ours(tiny.CAPTIONS, latents=latents, num_inference_steps=STEPS, **options)
        expected = generated(theirs, latents, **options)
        assert expected.std() > 0.05, asked
        assert all(psnr(image, other) > 50 for image, other in zip(images, expected, strict=True)), asked


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == "sdxl" else [SLOW]) for name in TEXT])
def test_what_diffusers_saves_is_the_same_pipeline_here(
    name: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    loaded(name, folders(name)).save_pretrained(tmp_path)
    options: dict[str, Any] = {"num_inference_steps": 2, "seed": 5}
    first, second = (
        TextToImage.from_pretrained(folder, device="cpu")(tiny.CAPTIONS[0], **options)[0]
        for folder in (folders(name), tmp_path)
    )
    assert first.tobytes() == second.tobytes()


def test_size_and_crop_conditioning_matches(folders: Callable[[str], Path]) -> None:
    theirs, ours = loaded("sdxl", folders("sdxl")), TextToImage.from_pretrained(folders("sdxl"), device="cpu")
    wide = noise(2, 4, 16, 24)
    size_conditioning = SizeConditioning(original=(96, 64), corner=(8, 2), target=(40, 36))
    images = ours(
        tiny.CAPTIONS, latents=wide, num_inference_steps=STEPS, guidance_scale=4.0, size_conditioning=size_conditioning
    )
    conditioning = {"original_size": (64, 96), "crops_coords_top_left": (2, 8), "target_size": (36, 40)}
    expected = generated(theirs, wide, guidance_scale=4.0, height=32, width=48, **conditioning)
    assert images[0].size == (48, 32)
    assert all(psnr(image, other) > 50 for image, other in zip(images, expected, strict=True))
    unframed = ours(tiny.CAPTIONS, latents=wide, num_inference_steps=STEPS, guidance_scale=4.0)
    assert psnr(unframed[0], np.asarray(images[0]) / 255) < 50
    whole = generated(theirs, wide, guidance_scale=4.0, height=32, width=48)
    assert all(psnr(image, other) > 50 for image, other in zip(unframed, whole, strict=True))


@pytest.mark.parametrize("zeros", [pytest.param(True, marks=SLOW), False])
def test_an_empty_negative_prompt_is_zeros_where_the_pipeline_says_so(zeros: bool, tmp_path: Path) -> None:
    pipeline = tiny.sdxl()
    text = TextConditioning(pipeline.conditionings["text"].encoders, zeros_for_empty_prompt=zeros)
    pipeline = replace(pipeline, conditionings={"text": text})
    TextToImage(pipeline).save_pretrained(tmp_path)
    theirs = diffusers.StableDiffusionXLPipeline.from_pretrained(tmp_path)
    theirs.set_progress_bar_config(disable=True)
    assert theirs.config.force_zeros_for_empty_prompt is zeros
    ours = TextToImage.from_pretrained(tmp_path, device="cpu")
    assert ours.pipeline.conditionings["text"].zeros_for_empty_prompt is zeros
    latents = noise(2, 4, 16, 16)
    images = ours(tiny.CAPTIONS, latents=latents, num_inference_steps=STEPS, guidance_scale=4.0)
    expected = generated(theirs, latents, guidance_scale=4.0)
    assert all(psnr(image, other) > 50 for image, other in zip(images, expected, strict=True))


@pytest.mark.parametrize("kind", ["vq", pytest.param("kl", marks=SLOW)])
def test_unconditional_images_are_the_same(kind: str, tmp_path: Path) -> None:
    TextToImage(tiny.unconditional(kind)).save_pretrained(tmp_path)
    theirs = diffusers.LDMPipeline.from_pretrained(tmp_path)
    theirs.set_progress_bar_config(disable=True)
    ours = TextToImage.from_pretrained(tmp_path, device="cpu")
    latents = noise(2, 4, 16, 16)
    images = ours(num_images=2, latents=latents, num_inference_steps=STEPS)
    generator = torch.Generator().manual_seed(3)
    expected = theirs(batch_size=2, generator=generator, num_inference_steps=STEPS, output_type="np").images
    assert expected.std() > 0.05
    assert all(psnr(image, other) > 50 for image, other in zip(images, expected, strict=True))
    theirs.save_pretrained(tmp_path / "again")
    again = TextToImage.from_pretrained(tmp_path / "again", device="cpu")
    (first,), (second,) = (pipe(num_inference_steps=2, seed=5) for pipe in (ours, again))
    assert first.tobytes() == second.tobytes()


def test_images_of_a_model_on_pixels_are_the_same(tmp_path: Path) -> None:
    TextToImage(tiny.pixels()).save_pretrained(tmp_path)
    theirs = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    theirs.set_progress_bar_config(disable=True)
    ours = TextToImage.from_pretrained(tmp_path, device="cpu")
    images = ours(num_images=2, latents=noise(2, 3, 16, 16), num_inference_steps=STEPS)
    generator = torch.Generator().manual_seed(3)
    expected = theirs(batch_size=2, generator=generator, num_inference_steps=STEPS, output_type="np").images
    assert expected.std() > 0.05
    assert all(psnr(image, other) > 50 for image, other in zip(images, expected, strict=True))
    theirs.save_pretrained(tmp_path / "again")
    again = TextToImage.from_pretrained(tmp_path / "again", device="cpu")
    (first,), (second,) = (pipe(num_inference_steps=2, seed=5) for pipe in (ours, again))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize(
    ("kind", "sampler", "options"),
    [
        ("EulerDiscreteScheduler", "ddim", {"timestep_spacing": "leading"}),
        pytest.param("EulerDiscreteScheduler", "ddim", {"timestep_spacing": "trailing"}, marks=SLOW),
        pytest.param("PNDMScheduler", "plms", {"skip_prk_steps": True}, marks=SLOW),
        pytest.param("UniPCMultistepScheduler", "unipc", {"timestep_spacing": "trailing"}, marks=SLOW),
        pytest.param("DPMSolverMultistepScheduler", "dpmpp-2m", {"timestep_spacing": "trailing"}, marks=SLOW),
    ],
)
def test_another_scheduler_saved_there_leads_the_same_way_here(
    kind: str, sampler: str, options: dict[str, Any], folders: Callable[[str], Path], tmp_path: Path
) -> None:
    theirs = loaded("sdxl", folders("sdxl"))
    theirs.scheduler = getattr(diffusers, kind).from_config(theirs.scheduler.config, **options)
    theirs.save_pretrained(tmp_path)
    ours = TextToImage.from_pretrained(tmp_path, device="cpu")
    latents = noise(2, 4, 16, 16)
    expected = generated(theirs, latents, guidance_scale=4.0)
    images = ours(tiny.CAPTIONS, latents=latents, num_inference_steps=STEPS, guidance_scale=4.0, sampler=sampler)
    assert all(psnr(image, other) > 50 for image, other in zip(images, expected, strict=True))
