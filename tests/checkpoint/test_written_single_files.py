"""Single files with the original names: written bit for bit, or a one-line error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from single_files import GOLDEN, NARROW, PLAIN, golden_weights, same_networks, with_weights

from ldm.checkpoint.compvis import SingleFile, read_single_file, write_single_file
from ldm.checkpoint.compvis.contents import Contents
from ldm.checkpoint.compvis.folders import read_folder, write_folder
from ldm.checkpoint.compvis.original_config import check_expressible
from ldm.checkpoint.compvis.rules import interleaved
from ldm.checkpoint.diffusers.pipeline import load_pipeline
from ldm.conditioning.low_resolution import LowResolutionConfig
from ldm.conditioning.segmentation_map import SegmentationMapConfig
from ldm.conditioning.spatial import SpatialConditioning, SpatialSection
from ldm.conditioning.text.bert import BertConfig
from ldm.conditioning.text.ldm_bert import LDMBertConfig
from ldm.conditioning.text.t5 import T5Config
from ldm.config.diffusion import DiffusionConfig
from ldm.errors import UserError
from ldm.models.unet.config import UNetConfig

MODELS = {
    "scale-shift and resblock_updown": UNetConfig(
        **PLAIN, block_out_channels=(32, 64), attention_layers=(1, 0), time_scale_shift=True, resnet_resampling=True
    ),
    "a table of classes": UNetConfig(
        **PLAIN, block_out_channels=(32, 64, 64), attention_layers=(0, 1, 1), num_class_embeds=7
    ),
    "a projected vector": UNetConfig(
        **PLAIN,
        block_out_channels=(64, 32 * 6),
        attention_layers=(0, 1),
        class_embed_type="projection",
        projection_class_embeddings_input_dim=10,
    ),
    "one level": UNetConfig(**PLAIN, block_out_channels=(64,), attention_layers=(0,)),
}


@pytest.mark.parametrize("unet", MODELS.values(), ids=MODELS)
def test_every_kind_of_unet_comes_back_bit_by_bit(unet: UNetConfig, tmp_path: Path) -> None:
    model = with_weights(Contents(unet=unet, autoencoder=NARROW, diffusion=DiffusionConfig()))
    write_single_file(model, tmp_path / "model.safetensors")
    assert same_networks(read_single_file(tmp_path / "model.safetensors"), model)


def test_a_rescaler_comes_back_bit_by_bit(tmp_path: Path) -> None:
    unet = UNetConfig(**PLAIN | {"in_channels": 5}, block_out_channels=(32, 32), attention_layers=(0, 1))
    spatial = SegmentationMapConfig(in_channels=9, channels=2, stages=1)
    model = with_weights(Contents(unet=unet, autoencoder=NARROW, spatial=spatial, diffusion=DiffusionConfig()))
    write_single_file(model, tmp_path / "model.safetensors")
    assert load_file(tmp_path / "model.safetensors")["cond_stage_model.channel_mapper.weight"].shape == (2, 9, 1, 1)
    assert same_networks(read_single_file(tmp_path / "model.safetensors"), model)


@pytest.mark.parametrize(
    "spatial",
    [
        SegmentationMapConfig(in_channels=9, channels=3, stages=NARROW.downsampling_factor.bit_length() - 1),
        LowResolutionConfig(),
    ],
    ids=["segmentation_map", "low resolution"],
)
def test_concatenated_inputs_have_a_component_in_a_pipeline(spatial: SpatialSection, tmp_path: Path) -> None:
    unet = UNetConfig(
        **PLAIN | {"in_channels": 3 + NARROW.latent_channels},
        block_out_channels=(32, 32),
        attention_layers=(0, 1),
    )
    model = with_weights(Contents(unet=unet, autoencoder=NARROW, spatial=spatial, diffusion=DiffusionConfig()))
    write_folder(model, tmp_path / "pipeline")
    loaded = load_pipeline(tmp_path / "pipeline").conditionings[spatial.kind]
    assert isinstance(loaded, SpatialConditioning)
    assert loaded.module.config == spatial
    found = read_folder(tmp_path / "pipeline")
    assert found.contents.spatial == spatial
    assert found.networks.keys() == model.networks.keys()
    weights = {name: network.state_dict() for name, network in model.networks.items() if name != "autoencoder"}
    for name, expected in weights.items():
        assert all(torch.equal(weight, expected[key]) for key, weight in found.networks[name].state_dict().items())


INEXPRESSIBLE = {
    "unet.norm_num_groups is 16": {"unet": {"norm_num_groups": 16}},
    "unet.num_attention_heads is [1, 8]": {"unet": {"num_attention_heads": (1, 8)}},
    "unet.downsample_padding is 0": {"unet": {"downsample_padding": 0}},
    "unet.freq_shift is 1.0": {"unet": {"freq_shift": 1.0}},
    "unet.flip_sin_to_cos is False": {"unet": {"flip_sin_to_cos": False}},
    "unet.block_out_channels is [32, 48]": {"unet": {"block_out_channels": (32, 48), "norm_num_groups": 32}},
    "unet.mid_attention_layers is 0": {"unet": {"mid_attention_layers": 0}},
    "autoencoder.norm_num_groups is 8": {"autoencoder": {"norm_num_groups": 8}},
    "diffusion.prediction is flow": {"diffusion": {"prediction": "flow"}},
    "diffusion.learned_variance is True": {"diffusion": {"learned_variance": True}},
}


@pytest.mark.parametrize("message", INEXPRESSIBLE)
def test_what_the_original_cannot_express_raises_an_error_that_names_it(message: str, tmp_path: Path) -> None:
    unet = UNetConfig(**PLAIN, block_out_channels=(32, 64), attention_layers=(0, 1))
    contents = Contents(unet=unet, autoencoder=NARROW, diffusion=DiffusionConfig())
    changed = {
        name: getattr(contents, name).model_copy(update=update) for name, update in INEXPRESSIBLE[message].items()
    }
    model = SingleFile(contents.model_copy(update=changed), with_weights(contents).networks)
    with pytest.raises(UserError) as caught:
        write_single_file(model, tmp_path / "model.safetensors")
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_text_beside_a_map_raises_an_error() -> None:
    unet = UNetConfig(block_out_channels=(32,), attention_layers=(1,), in_channels=5, out_channels=3)
    spatial = SegmentationMapConfig(channels=2)
    contents = Contents(unet=unet, autoencoder=NARROW, text=LDMBertConfig(hidden_size=256), spatial=spatial)
    with pytest.raises(UserError, match="spatial is segmentation_map"):
        check_expressible(contents)


@pytest.mark.parametrize("text", [BertConfig(), T5Config()])
def test_a_text_encoder_that_the_original_lacks_raises_an_error_by_its_kind(text: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"text.kind {text.kind}"):
        Contents(unet=UNetConfig(cross_attention_dim=text.hidden_size), text=text).rules({"unet": "", "text": ""})


# The transforms


def test_interleaved_rows_are_those_of_one_head_after_the_other() -> None:
    heads, width = 2, 3
    rows = torch.arange(3 * heads * width)  # of the file: head 0: q q q k k k v v v, head 1: the same
    query, key, value = interleaved(3, heads).to_ours([rows])
    assert query.tolist() == [0, 1, 2, 9, 10, 11]
    assert key.tolist() == [3, 4, 5, 12, 13, 14]
    assert value.tolist() == [6, 7, 8, 15, 16, 17]
    [again] = interleaved(3, heads).to_theirs([query, key, value])
    assert torch.equal(again, rows)


def test_the_newer_order_of_plain_attention_is_that_of_its_configuration(tmp_path: Path) -> None:
    tree = yaml.safe_load((GOLDEN / "uncond-vq" / "config.yaml").read_text())
    tree["model"]["params"]["unet_config"]["params"]["use_new_attention_order"] = True
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    weights = golden_weights("uncond-vq")
    save_file(weights, tmp_path / "model.safetensors")
    found = read_single_file(tmp_path / "model.safetensors", tmp_path / "config.yaml")
    theirs = weights["model.diffusion_model.middle_block.1.qkv.weight"]
    attention = found.networks["unet"].mid_block.attentions[0]
    assert torch.equal(torch.cat([attention.to_q.weight, attention.to_k.weight, attention.to_v.weight]), theirs[..., 0])
    write_single_file(found, tmp_path / "again.safetensors")  # in the older order, which all can read
    again = read_single_file(tmp_path / "again.safetensors")
    state = found.networks["unet"].state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in again.networks["unet"].state_dict().items())
