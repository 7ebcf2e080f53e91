"""Single files of Stable Diffusion 1, 2 and XL, made small, are what diffusers' own conversion makes of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file
from single_files import SMALL_MODELS, same_networks, with_weights
from torch import Tensor

from ldm.checkpoint.compvis import read_single_file, write_single_file
from ldm.checkpoint.compvis.convert import Conversion, convert
from ldm.models.autoencoder.fields import autoencoder_to_fields
from ldm.models.unet.fields import unet_to_fields


@pytest.fixture(scope="module", params=SMALL_MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def path(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(name) / "model.safetensors"
    write_single_file(with_weights(SMALL_MODELS[name]), path)
    return path


def assert_same(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> None:
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[key], weight) for key, weight in ours.items())


def test_a_round_trip_through_a_single_file_is_bit_equal(name: str, path: Path) -> None:
    assert same_networks(read_single_file(path), with_weights(SMALL_MODELS[name]))


def test_a_round_trip_in_half_precision_is_bit_equal(tmp_path: Path) -> None:
    model = with_weights(SMALL_MODELS["sdxl"], dtype=torch.float16)
    write_single_file(model, tmp_path / "half.safetensors")
    assert same_networks(read_single_file(tmp_path / "half.safetensors"), model)


def test_diffusers_finds_the_same_unet(name: str, path: Path) -> None:
    unet = read_single_file(path).networks["unet"]
    theirs = convert_ldm_unet_checkpoint(load_file(path), unet_to_fields(unet.config))
    assert_same(theirs, unet.state_dict())


def test_diffusers_finds_the_same_autoencoder(name: str, path: Path) -> None:
    autoencoder = read_single_file(path).networks["autoencoder"]
    theirs = convert_ldm_vae_checkpoint(load_file(path), autoencoder_to_fields(autoencoder.config))
    assert_same(theirs, autoencoder.state_dict())


def test_diffusers_finds_the_same_text_encoders(name: str, path: Path) -> None:
    networks, tensors = read_single_file(path).networks, load_file(path)
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=64))
    if name == "sd2":
        theirs = convert_open_clip_checkpoint(model, tensors)
        unused = [key for key in theirs if ".layers.3." in key]  # diffusers knows it by its number in SD 2, 23
        assert unused
        assert all(not theirs.pop(key).any() for key in unused)
    else:
        theirs = convert_ldm_clip_checkpoint(tensors)
    assert_same(theirs, networks["text"].state_dict())
    if name == "sdxl":
        theirs = convert_open_clip_checkpoint(model, tensors, prefix="conditioner.embedders.1.model.")
        assert_same(theirs, networks["text_2"].state_dict())


PIPELINES = {
    "sd1": diffusers.StableDiffusionPipeline,
    "sd2": diffusers.StableDiffusionPipeline,
    "sdxl": diffusers.StableDiffusionXLPipeline,
}
TEXTS = {"text": "text_encoder", "text_2": "text_encoder_2"}


@pytest.fixture(scope="module")
def folder(path: Path) -> Path:
    convert(str(path), path.parent / "folder", Conversion())
    return path.parent / "folder"


@pytest.mark.slow
def test_a_round_trip_through_a_folder_is_bit_equal(name: str, folder: Path, tmp_path: Path) -> None:
    convert(str(folder), tmp_path / "again.safetensors", Conversion())
    again = read_single_file(tmp_path / "again.safetensors")
    assert same_networks(again, with_weights(SMALL_MODELS[name]))
    assert not again.tokenizers  # they are CLIP's own


@pytest.mark.slow
def test_diffusers_loads_the_file_and_the_folder_as_the_same_pipeline(name: str, path: Path, folder: Path) -> None:
    single = PIPELINES[name].from_single_file(str(path), config=str(folder), local_files_only=True)
    whole = PIPELINES[name].from_pretrained(folder)
    assert (
        single.scheduler.config.prediction_type
        == {"eps": "epsilon", "v": "v_prediction"}[SMALL_MODELS[name].diffusion.prediction]
    )
    parts = ["unet", "vae", *(TEXTS[text] for text in SMALL_MODELS[name].conditions)]
    for part in parts:
        assert_same(getattr(single, part).state_dict(), getattr(whole, part).state_dict())
