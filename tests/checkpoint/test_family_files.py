"""Single files of released families: inpainting, InstructPix2Pix, latent consistency, SDXL's refiner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from single_files import INSIDE, OPEN_CLIP, SMALL_MODELS, same_networks, with_weights

from ldm import config
from ldm.checkpoint.compvis import read_single_file, write_single_file
from ldm.checkpoint.compvis.contents import Contents
from ldm.checkpoint.compvis.convert import Conversion, convert
from ldm.checkpoint.compvis.files import read_config
from ldm.checkpoint.compvis.matching import Layout, recognise
from ldm.checkpoint.compvis.original_config import contents_from_original, original_from_contents
from ldm.conditioning.image_edit import ImageEditConfig
from ldm.conditioning.inpainting import InpaintingConfig
from ldm.conditioning.text.clip import CLIPConfig
from ldm.errors import UserError

PUBLISHED = ("sd1-inpainting", "sd2-inpainting", "sdxl-inpainting", "sdxl-refiner", "instruct-pix2pix")
MASKED, EDITED = InpaintingConfig(in_channels=1, channels=5), ImageEditConfig(channels=4)


def seeing(name: str, spatial: Any) -> Contents:
    """Return a small model whose U-Net sees further channels beside the latents."""
    contents = SMALL_MODELS[name]
    unet = contents.unet.model_copy(update={"in_channels": 4 + spatial.channels})
    return contents.model_copy(update={"unet": unet, "spatial": spatial})


def refiner() -> Contents:
    contents = SMALL_MODELS["sdxl"]
    added = {"cross_attention_dim": 96, "projection_class_embeddings_input_dim": 80 + 5 * 8}
    text = CLIPConfig(**OPEN_CLIP | {"hidden_size": 96}, **INSIDE, projection_dim=80)
    update = {"unet": contents.unet.model_copy(update=added), "text": text, "text_2": None}
    return contents.model_copy(update=update | {"zeros_for_empty_prompt": False})


def consistency() -> Contents:
    contents = SMALL_MODELS["sd1"]
    return contents.model_copy(update={"unet": contents.unet.model_copy(update={"time_cond_proj_dim": 16})})


FAMILIES = {
    "sd1 inpainting": seeing("sd1", MASKED),
    "sd2 inpainting": seeing("sd2", MASKED),
    "sdxl inpainting": seeing("sdxl", MASKED),
    "instruct-pix2pix": seeing("sd1", EDITED),
    "refiner": refiner(),
    "latent consistency": consistency(),
}


@pytest.mark.slow
@pytest.mark.parametrize("contents", FAMILIES.values(), ids=FAMILIES)
def test_a_file_becomes_a_folder_and_the_same_file_again(contents: Contents, tmp_path: Path) -> None:
    file = with_weights(contents)
    write_single_file(file, tmp_path / "model.safetensors")
    convert(str(tmp_path / "model.safetensors"), tmp_path / "folder", Conversion())
    convert(str(tmp_path / "folder"), tmp_path / "again.safetensors", Conversion())
    found, expected = load_file(tmp_path / "again.safetensors"), load_file(tmp_path / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert same_networks(read_single_file(tmp_path / "model.safetensors"), file)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_originals_yaml_says_the_same(name: str) -> None:
    contents = read_config(f"published/{name}")
    tree = yaml.safe_load(yaml.safe_dump(original_from_contents(contents)))
    found = contents_from_original(tree, name)
    assert found.unet == contents.unet.model_copy(update={"sample_size": found.unet.sample_size})
    assert found.spatial == contents.spatial
    assert (found.text_2 is None) == (contents.text_2 is None)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_released_file_is_recognised_by_its_tensors(name: str) -> None:
    contents = read_config(f"published/{name}")
    shapes = Layout.of(contents, list(_names(contents))).expected()
    found = recognise(shapes, name)
    assert found.spatial == contents.spatial
    assert found.unet == contents.unet
    assert config.load(f"published/{name}").spatial == contents.spatial


def _names(contents: Contents) -> set[str]:
    return {name for rules in contents.rules(contents.prefixes()).values() for name in rules.known}


def test_the_keys_of_the_refiner_are_those_of_the_release() -> None:
    names = _names(read_config("published/sdxl-refiner"))
    assert "conditioner.embedders.0.model.ln_final.weight" in names
    assert "conditioner.embedders.0.model.text_projection" in names
    assert "model.diffusion_model.label_emb.0.0.weight" in names
    assert "model.diffusion_model.input_blocks.8.1.transformer_blocks.3.attn2.to_k.weight" in names
    assert not any(name.startswith(("conditioner.embedders.1.", "cond_stage_model.")) for name in names)


INPAINTING_YAML: dict[str, Any] = {
    "target": "ldm.models.diffusion.ddpm.LatentInpaintDiffusion",
    "params": {"conditioning_key": "hybrid", "finetune_keys": None, "concat_keys": ["mask", "masked_image"]},
}


def test_the_released_yaml_of_inpainting_is_read() -> None:
    tree = original_from_contents(read_config("published/sd1-inpainting"))
    assert tree["model"]["target"] == INPAINTING_YAML["target"]
    tree["model"]["params"] |= INPAINTING_YAML["params"]
    assert contents_from_original(tree, "yaml").spatial == MASKED


def test_channels_of_an_unknown_family_raise_an_error() -> None:
    tree = original_from_contents(read_config("published/sd1-inpainting"))
    tree["model"]["params"]["unet_config"]["params"]["in_channels"] = 7
    with pytest.raises(UserError, match=r"3 channels are concatenated to the latents; ldm supports 5 \(inpainting\)"):
        contents_from_original(tree, "yaml")


@pytest.mark.parametrize(
    ("target", "family"),
    [
        ("LatentDepth2ImageDiffusion", "a depth map"),
        ("LatentUpscaleDiffusion", "x4 upscaler"),
        ("ControlLDM", "ControlNet"),
    ],
)
def test_an_unsupported_family_is_named(target: str, family: str) -> None:
    with pytest.raises(UserError, match=family):
        contents_from_original({"model": {"target": f"ldm.models.diffusion.ddpm.{target}", "params": {}}}, "yaml")


def test_weights_of_the_guidance_embedding_have_the_name_of_released_files(tmp_path: Path) -> None:
    write_single_file(with_weights(consistency()), tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["model.diffusion_model.time_embed.cond_proj.weight"].shape == (32, 16)
    save_file(tensors, tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match="matches no published model"):
        read_single_file(tmp_path / "bare.safetensors")
