"""The original configuration files match ours; unsupported options in them raise an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from single_files import GOLDEN

from ldm.checkpoint.compvis.contents import Contents
from ldm.checkpoint.compvis.matching import Layout, recognise
from ldm.checkpoint.compvis.original_config import contents_from_original, original_from_contents
from ldm.conditioning.text.clip import CLIPConfig
from ldm.config.diffusion import DiffusionConfig
from ldm.config.files import load, names
from ldm.errors import UserError
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.unet.config import UNetConfig

PUBLISHED = [name for name in names() if name.startswith("published/")]
GUESSED = ("published/sd2-base", "published/sd2-v")  # no shape shows what they predict


def comparable(contents: Contents) -> Contents:
    """Remove what the original files do not contain: the source of weights and the noise of training."""
    changed: dict[str, Any] = {}
    for name in ("text", "text_2"):
        if getattr(contents, name) is not None:
            changed[name] = getattr(contents, name).model_copy(update={"source": None})
    if contents.diffusion is not None:
        changed["diffusion"] = contents.diffusion.model_copy(update={"offset_noise": 0.0})
    if contents.autoencoder is not None:  # no factor is a factor of 1 beside a U-Net, and unknown without one
        scale = (contents.autoencoder.scaling_factor or 1.0) if contents.unet is not None else None
        changed["autoencoder"] = contents.autoencoder.model_copy(update={"scaling_factor": scale})
    return contents.model_copy(update=changed)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_model_has_a_configuration_of_the_original(name: str) -> None:
    contents = Contents.of_config(load(name))
    text = yaml.safe_dump(original_from_contents(contents))
    assert comparable(contents_from_original(yaml.safe_load(text), name)) == comparable(contents)


QUICK = ("kl-f8", "celebahq-ldm-vq-4", "sd2-v")
SHAPES = [
    pytest.param(name, marks=() if name.removeprefix("published/") in QUICK else pytest.mark.slow) for name in PUBLISHED
]


@pytest.mark.parametrize("name", SHAPES)
def test_every_published_model_is_known_by_its_shapes_or_asks_which_it_is(name: str) -> None:
    contents = Contents.of_config(load(name))
    rules = contents.rules(contents.prefixes())
    layout = Layout.of(contents, {key for network in rules.values() for key in network.known})
    shapes = layout.expected()
    if name in GUESSED:
        with pytest.raises(UserError, match=r"published/sd2-base.*published/sd2-v.*--config"):
            recognise(shapes, "model.ckpt")
    else:
        assert recognise(shapes, "model.ckpt") == contents


def golden_tree(model: str) -> dict[str, Any]:
    return yaml.safe_load((GOLDEN / model / "config.yaml").read_text())


def test_the_golden_files_are_understood() -> None:
    text = contents_from_original(golden_tree("text-kl-bert"), "config.yaml")
    assert text.text.model_dump(include={"kind", "hidden_size", "num_hidden_layers", "vocab_size", "max_length"}) == {
        "kind": "ldm_bert",
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "vocab_size": 128,
        "max_length": 12,
    }
    plain = contents_from_original(golden_tree("uncond-vq"), "config.yaml")
    assert plain.unet.heads == (2, 4)
    assert plain.unet.attention_layers == (0, 1)
    assert plain.autoencoder.attention_levels == (1,)
    assert plain.diffusion.schedule.model_dump(include={"kind", "beta_start", "beta_end"}) == {
        "kind": "scaled_linear",
        "beta_start": 0.0015,
        "beta_end": 0.0195,
    }
    classes = contents_from_original(golden_tree("class-vq"), "config.yaml")
    assert (classes.classes.num_classes, classes.classes.hidden_size) == (10, 32)


REFUSED = {
    "unet_config.params.spectral_norm": True,
    "unet_config.params.dims": 3,
    "unet_config.params.num_head_channels": 7,
    "unet_config.params.channel_mult": [2, 4],
    "unet_config.params.disable_self_attentions": [True, False],
    "unet_config.target": "somewhere.EncoderUNetModel",
    "first_stage_config.params.ddconfig.attn_type": "linear",
    "first_stage_config.params.ddconfig.dropout": 0.1,
    "first_stage_config.params.remap": "a.npy",
    "first_stage_config.target": "os.system",
    "cond_stage_config.params.n_tokens": 3,
    "cond_stage_config.target": "torch.load",
    "beta_schedule": "sqrt",
    "parameterization": "score",
    "given_betas": [0.1],
    "adapter_config": {"target": "a.B"},
}


@pytest.mark.parametrize("path", REFUSED)
def test_what_cannot_be_followed_raises_an_error_by_its_name(path: str) -> None:
    tree = golden_tree("class-vq")
    node = tree["model"]["params"]
    *parents, last = path.split(".")
    for parent in parents:
        node = node[parent]
    node[last] = REFUSED[path]
    with pytest.raises(UserError) as caught:
        contents_from_original(tree, "config.yaml")
    assert path.removesuffix(".target") in str(caught.value)
    assert str(caught.value).startswith("config.yaml: ")


@pytest.mark.parametrize(
    "tree", [None, [], {}, {"model": None}, {"model": {"target": 3}}, {"model": {"target": "a.B"}}]
)
def test_what_is_no_configuration_raises_an_error(tree: Any) -> None:
    with pytest.raises(UserError, match="model"):
        contents_from_original(tree, "config.yaml")


def test_sizes_of_text_encoders_that_the_original_has_no_name_for_raise_an_error() -> None:
    contents = Contents(
        autoencoder=AutoencoderConfig(),
        unet=UNetConfig(cross_attention_dim=64),
        text=CLIPConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4),
        diffusion=DiffusionConfig(),
    )
    with pytest.raises(UserError, match=r"heads \(64, 3, 4\), which .* of \(768, 12, 12\)"):
        original_from_contents(contents)


def test_a_target_is_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    tree = golden_tree("class-vq")
    tree["model"]["params"]["cond_stage_config"]["target"] = "planted.ClassEmbedder"
    assert contents_from_original(tree, "config.yaml").classes is not None


def test_an_autoencoder_alone_is_no_part_of_another_model() -> None:
    whole = Contents.of_config(load("published/sd1"))
    alone = Layout.of(Contents(autoencoder=whole.autoencoder), ["encoder.conv_in.weight"])
    assert recognise(alone.expected(), "vae.safetensors").autoencoder.scaling_factor is None


def test_a_unet_alone_is_recognised() -> None:
    whole = Contents.of_config(load("published/cin-ldm-vq-f8"))
    alone = Layout.of(whole, ["model.diffusion_model.input_blocks.0.0.weight"])
    assert recognise(alone.expected(), "unet.safetensors").unet == whole.unet
