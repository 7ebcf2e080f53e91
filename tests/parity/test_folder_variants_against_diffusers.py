"""Fields that real folders have and ours do not: latent statistics, missing convolutions, pipeline classes, EMA."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from diffusers.training_utils import EMAModel
from PIL import Image
from safetensors.torch import load_file, save_file

from ldm.checkpoint.diffusers.layouts import SAME_COMPONENTS
from ldm.checkpoint.diffusers.pipeline import load_pipeline
from ldm.checkpoint.pipeline import Pipeline
from ldm.errors import UserError
from ldm.generation import TextToImage
from ldm.models.autoencoder.autoencoder import Autoencoder

MEAN, STD = [0.3, -0.2, 0.1, 0.5], [0.5, 1.5, 2.0, 0.8]
KINDS: dict[str, tuple[Callable[[], Pipeline], str]] = {
    "StableDiffusionPipeline": (tiny.sd_1, "vae"),
    "StableDiffusionXLPipeline": (tiny.sdxl, "vae"),
    "LDMTextToImagePipeline": (tiny.ldm_text, "vqvae"),
    "LDMPipeline": (tiny.unconditional, "vqvae"),
    "LDMSuperResolutionPipeline": (tiny.super_resolution, "vqvae"),
}


def edit(path: Path, **changes: Any) -> None:
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value != "absent"}))


def images(name: str, folder: Path) -> tuple[Image.Image, Image.Image]:
    """Return the image of our pipeline and of theirs, from equal noise."""
    theirs = getattr(diffusers, name).from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    ours = TextToImage.from_pretrained(folder, device="cpu")
    generator = torch.Generator().manual_seed(3)
    steps = {"num_inference_steps": 3}
    if name == "LDMSuperResolutionPipeline":
        image = Image.fromarray(np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8))
        latents = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
        return ours(image=image, latents=latents, **steps)[0], theirs(image=image, generator=generator, **steps).images[
            0
        ]
    side = 8 if name == "LDMTextToImagePipeline" else 16
    latents = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(3))
    if name == "LDMPipeline":
        return ours(latents=latents, **steps)[0], theirs(generator=generator, **steps).images[0]
    options = {"latents": latents, "guidance_scale": 4.0, **steps}
    return ours(tiny.CAPTIONS[0], **options)[0], theirs(tiny.CAPTIONS[0], **options).images[0]


def psnr(image: Image.Image, expected: Image.Image) -> float:
    error = (np.asarray(image).astype(float) - np.asarray(expected)) / 255
    return float(10 * np.log10(1 / max(np.square(error).mean(), 1e-12)))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("fields", ["absent", "own", "statistics"])
def test_every_pipeline_class_scales_latents_by_its_own_rule(name: str, fields: str, tmp_path: Path) -> None:
    make, vae = KINDS[name]
    TextToImage(make()).save_pretrained(tmp_path)
    path = tmp_path / vae / "config.json"
    is_kl = json.loads(path.read_text())["_class_name"] == "AutoencoderKL"
    if fields == "statistics" and not is_kl:
        pytest.skip("VQModel has no such fields")
    changes = {"latents_mean": MEAN, "latents_std": STD, "shift_factor": 0.4, "scaling_factor": 0.6}
    edit(
        path, **{"absent": {"scaling_factor": "absent"}, "own": {"scaling_factor": 0.6}, "statistics": changes}[fields]
    )
    found, expected = images(name, tmp_path)
    assert np.asarray(expected).std() > 10
    assert psnr(found, expected) > 60


@pytest.mark.parametrize("left_out", ["quant_conv", "post_quant_conv", "both"])
def test_an_autoencoder_without_quant_convolutions_is_that_of_diffusers(left_out: str, tmp_path: Path) -> None:
    names = ["quant_conv", "post_quant_conv"] if left_out == "both" else [left_out]
    config = tiny.autoencoder_config()
    Autoencoder(config).save_pretrained(tmp_path)
    edit(tmp_path / "config.json", **{f"use_{name}": False for name in names})
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = {name: each for name, each in load_file(path).items() if name.split(".")[0] not in names}
    save_file(weights, path, {"format": "pt"})
    theirs, ours = diffusers.AutoencoderKL.from_pretrained(tmp_path), Autoencoder.from_pretrained(tmp_path)
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        moments = theirs.encode(image).latent_dist.parameters
        torch.testing.assert_close(ours.encode(image).moments, moments, rtol=1e-4, atol=1e-5)
        z = moments.chunk(2, dim=1)[0]
        decoded = ours.decode(z * config.scaling_factor)
        torch.testing.assert_close(decoded, theirs.decode(z).sample, rtol=1e-4, atol=1e-5)


def test_latents_mean_and_std_are_those_of_sdxl(tmp_path: Path) -> None:
    Autoencoder(tiny.autoencoder_config()).save_pretrained(tmp_path)
    edit(tmp_path / "config.json", latents_mean=MEAN, latents_std=STD, scaling_factor=0.5)
    ours, theirs = Autoencoder.from_pretrained(tmp_path), diffusers.AutoencoderKL.from_pretrained(tmp_path)
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        mean, std = (torch.tensor(each).view(1, 4, 1, 1) for each in (MEAN, STD))
        expected = (theirs.encode(image).latent_dist.mode() - mean) * 0.5 / std
        torch.testing.assert_close(ours.encode(image).mode(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"latents_mean": MEAN[:2], "latents_std": STD}, "latents_mean"),
        ({"latents_mean": MEAN, "latents_std": [0.0, *STD[1:]]}, "latents_std"),
        ({"latents_mean": MEAN, "latents_std": STD, "shift_factor": 0.1}, "latents_mean"),
    ],
)
def test_statistics_that_do_not_fit_raise_an_error(changes: dict[str, Any], field: str, tmp_path: Path) -> None:
    Autoencoder(tiny.autoencoder_config()).save_pretrained(tmp_path)
    edit(tmp_path / "config.json", **changes)
    with pytest.raises(UserError, match=f"the field {field} is"):
        Autoencoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", SAME_COMPONENTS)
def test_other_pipeline_classes_with_the_same_components_load(name: str, tmp_path: Path) -> None:
    same = SAME_COMPONENTS[name]
    makers = {"DDPMPipeline": tiny.pixels} | {each: make for each, (make, _) in KINDS.items()}
    TextToImage(makers[same]()).save_pretrained(tmp_path)
    expected = load_pipeline(tmp_path)
    edit(tmp_path / "model_index.json", _class_name=name)
    assert hasattr(diffusers, name)
    loaded = load_pipeline(tmp_path)
    assert loaded.sections == expected.sections
    assert loaded.conditionings.keys() == expected.conditionings.keys()


@pytest.mark.parametrize("value", [None, True, False])
def test_a_safety_checker_that_nobody_decided_about_is_no_obstacle(value: bool | None, tmp_path: Path) -> None:
    TextToImage(tiny.sd_1()).save_pretrained(tmp_path)
    edit(tmp_path / "model_index.json", requires_safety_checker=value)
    assert load_pipeline(tmp_path).denoiser_name == "unet"


@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", "DDPMPipeline"])
def test_a_unet_of_emamodel_loads(kind: str, tmp_path: Path) -> None:
    TextToImage({"StableDiffusionPipeline": tiny.sd_1, "DDPMPipeline": tiny.pixels}[kind]()).save_pretrained(tmp_path)
    theirs = getattr(diffusers, kind).from_pretrained(tmp_path).unet
    ema = EMAModel(theirs.parameters(), model_cls=type(theirs), model_config=theirs.config, use_ema_warmup=True)
    ema.step(theirs.parameters())
    ema.save_pretrained(tmp_path / "unet")
    assert "inv_gamma" in json.loads((tmp_path / "unet/config.json").read_text())
    loaded = load_pipeline(tmp_path)
    weights = loaded.denoiser.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in theirs.state_dict().items())
