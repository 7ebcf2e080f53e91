"""Configurations: all of their networks can be made, and have as many parameters as the published models."""

import json
from pathlib import Path

import pytest
import torch

from ldm import config
from ldm.config import Config
from ldm.info.cost import make_networks
from ldm.info.describe import of_config
from ldm.info.report import report

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
}


@pytest.mark.parametrize(("section", "name", "count"), ROWS, ids=lambda value: str(value).split(" ")[0])
def test_a_published_model_has_its_parameters_to_the_digit(section: str, name: str, count: int) -> None:
    networks = make_networks(of_config(name, config.load(f"published/{name.split(' ')[0]}")).contents)
    assert sum(weight.numel() for weight in networks[SECTIONS[section]].parameters()) == count


@pytest.mark.parametrize("name", config.names())
def test_every_shipped_configuration_runs_on_the_meta_device_from_pictures_to_output(name: str) -> None:
    """Encoding, a U-Net call with all it is told, decoding: shapes fit, and no number takes memory."""
    loaded = config.load(name)
    description = of_config(name, loaded)
    networks = make_networks(description.contents)
    assert {"autoencoder"} | ({"unet"} if loaded.unet else set()) <= networks.keys()
    assert all(weight.device == torch.device("meta") for net in networks.values() for weight in net.parameters())
    facts = report(description)
    assert facts["flops"].keys() == {"encode", "decode"} | ({"unet"} if loaded.unet else set())
    assert facts["picture"] == [3, loaded.data.size, loaded.data.size]
    for text in (loaded.text, loaded.text_2):
        if text is not None:
            _check_text(networks["text" if text is loaded.text else "text_2"], text)


def _check_text(encoder: torch.nn.Module, text: config.TextSection) -> None:
    ids = torch.zeros(1, text.max_length, dtype=torch.int64, device="meta")
    assert encoder(ids, ids).context.shape == (1, text.max_length, text.hidden_size)


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
