"""Configurations: all of their networks can be made, and have as many parameters as the published models."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from ldm import config
from ldm.config.root import Config
from ldm.info.describe import of_config
from ldm.info.report import make_networks, report

COUNTS = json.loads((Path(__file__).parent / "param_counts.json").read_text())  # counted from the original code
ROWS = [(section, name, count) for section, rows in COUNTS.items() for name, count in rows.items()]
SECTIONS = {"unet": "unet", "autoencoder": "autoencoder", "text_encoder": "text"}

# Which published autoencoder the latents of a published U-Net are.
FIRST_STAGES = {
    "celebahq-ldm-vq-4": "vq-f4",
    "ffhq-ldm-vq-4": "vq-f4",
    "lsun_bedrooms-ldm-vq-4": "vq-f4",
    "lsun_churches-ldm-kl-8": "kl-f8",
    "cin-ldm-vq-f8": "vq-f8",
    "cin256-v2": "vq-f4",
    "txt2img-1p4B": "kl-f8",
    "text2img256": "vq-f4",
    "bsr_sr": "vq-f4",
    "inpainting_big": "vq-f4-noattn",
    "layout2img-openimages256": "vq-f4",
    "semantic_synthesis256": "vq-f4",
    "sd1": "kl-f8",
    "sd2-base": "kl-f8",
    "sd2-v": "kl-f8",
    "sdxl-base": "kl-f8",
    **dict.fromkeys(
        ("sd1-inpainting", "sd2-inpainting", "sdxl-inpainting", "sdxl-refiner", "instruct-pix2pix"), "kl-f8"
    ),
}


@cache
def networks_of(name: str) -> dict[str, nn.Module]:
    return make_networks(of_config(name, config.load(name)).contents)


@pytest.mark.parametrize("name", config.names())
def test_all_networks_of_a_shipped_configuration_can_be_made_and_take_no_memory_on_the_meta_device(name: str) -> None:
    loaded, networks = config.load(name), networks_of(name)
    described = {part for part in ("unet", "text", "text_2", "classes") if getattr(loaded, part) is not None}
    rescaled = {"spatial"} if loaded.spatial is not None and loaded.spatial.kind == "segmentation_map" else set()
    assert networks.keys() == {"autoencoder"} | described | rescaled
    assert all(weight.device == torch.device("meta") for net in networks.values() for weight in net.parameters())


@pytest.mark.parametrize(("section", "name", "count"), ROWS, ids=lambda value: str(value).split(" ")[0])
def test_a_published_model_has_its_parameters_to_the_digit(section: str, name: str, count: int) -> None:
    network = networks_of(f"published/{name.split(' ')[0]}")[SECTIONS[section]]
    assert sum(weight.numel() for weight in network.parameters()) == count


@pytest.mark.slow
@pytest.mark.parametrize("name", config.names())
def test_every_shipped_configuration_runs_from_images_to_output(name: str) -> None:
    """Encoding, a U-Net call with all its conditions, decoding, and texts to contexts, on the meta device."""
    loaded, facts = config.load(name), report(of_config(name, config.load(name)))
    assert facts["flops"].keys() == {"encode", "decode"} | ({"unet"} if loaded.unet else set())
    assert facts["image"] == [3, loaded.data.size, loaded.data.size]
    for part in ("text", "text_2"):
        if (text := getattr(loaded, part)) is not None:
            ids = torch.zeros(1, text.max_length, dtype=torch.int64, device="meta")
            assert networks_of(name)[part](ids, ids).context.shape == (1, text.max_length, text.hidden_size)


@pytest.mark.parametrize(("name", "first_stage"), FIRST_STAGES.items())
def test_the_autoencoder_of_a_published_u_net_is_the_published_one(name: str, first_stage: str) -> None:
    def network(loaded: Config) -> dict[str, object]:
        return loaded.autoencoder.model_dump(exclude={"scaling_factor", "shift_factor", "sample_size"})

    assert network(config.load(f"published/{name}")) == network(config.load(f"published/{first_stage}"))


def test_every_published_configuration_is_tested_by_name() -> None:
    rows = {name.split(" ")[0] for _, name, _ in ROWS}
    assert {f"published/{name}" for name in rows | FIRST_STAGES.keys()} == {
        name for name in config.names() if name.startswith("published/")
    }
