"""Names and objects that single files in circulation hold and the release does not."""

from __future__ import annotations

import sys
import types
import typing
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from single_files import SMALL_MODELS, same_networks, with_weights
from torch import Tensor

from ldm.checkpoint.compvis import SingleFile, read_single_file, write_single_file
from ldm.checkpoint.compvis.files import read_config
from ldm.checkpoint.compvis.reading import read_tensors
from ldm.config.files import find

Parts = tuple[SingleFile, dict[str, Tensor], dict[str, str]]


def written(kind: str, folder: Path) -> Parts:
    """Return a small model, its tensors under the names of the release, and the header with its configuration."""
    file = with_weights(SMALL_MODELS[kind])
    write_single_file(file, folder / "written.safetensors")
    with safe_open(folder / "written.safetensors", framework="pt") as opened:
        header = opened.metadata()
    return file, load_file(folder / "written.safetensors"), header


def assert_reads(variant: dict[str, Tensor], parts: Parts, folder: Path) -> None:
    """Check that a variant is the same model, and that writing it gives the names and bits of the release."""
    file, release, header = parts
    save_file({name: tensor.contiguous() for name, tensor in variant.items()}, folder / "variant.safetensors", header)
    found = read_single_file(folder / "variant.safetensors")
    assert same_networks(found, file)
    write_single_file(found, folder / "again.safetensors")
    again = load_file(folder / "again.safetensors")
    assert again.keys() == release.keys()
    assert all(torch.equal(tensor, release[name]) for name, tensor in again.items())


@pytest.mark.parametrize(("kind", "prefix"), [("sd1", "cond_stage_model."), ("sdxl", "conditioner.embedders.0.")])
def test_text_encoders_without_text_model_in_their_names_are_read(kind: str, prefix: str, tmp_path: Path) -> None:
    parts = written(kind, tmp_path)
    old = {name.replace(f"{prefix}transformer.text_model.", f"{prefix}transformer."): t for name, t in parts[1].items()}
    assert old.keys() != parts[1].keys()
    assert_reads(old, parts, tmp_path)


UNUSED = {  # names in files that people share
    "sd1": [
        "cond_stage_model.transformer.text_projection.weight",
        "cond_stage_model.text_projection",
        "cond_stage_model.logit_scale",
        "cond_stage_model.transformer.logit_scale",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
        "cond_stage_model.transformer.embeddings.position_ids",
        "first_stage_model.model_ema.decay",
        "first_stage_model.model_ema.encoderconv_inweight",
        "first_stage_model.model_ema.num_updates",
        "global_step",
    ],
    "sd2": [
        "cond_stage_model.logit_scale",
        "cond_stage_model.model.attn_mask",
        "cond_stage_model.model.transformer.text_model.embeddings.position_ids",
    ],
    "sdxl": [
        "conditioner.embedders.0.logit_scale",
        "conditioner.embedders.0.text_projection",
        "conditioner.embedders.1.model.transformer.text_model.embeddings.position_ids",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", UNUSED)
def test_tensors_that_no_network_uses_are_passed_over(kind: str, tmp_path: Path) -> None:
    parts = written(kind, tmp_path)
    assert_reads(parts[1] | {name: torch.ones(3) for name in UNUSED[kind]}, parts, tmp_path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_flat_pickle_with_counters_of_training_is_read(zipped: bool, tmp_path: Path) -> None:
    _, release, _ = written("sd1", tmp_path)
    counters = {"global_step": 470000, "epoch": 3, "pytorch-lightning_version": "1.4.2", "callbacks": {}, "loops": None}
    torch.save(release | counters, tmp_path / "model.ckpt", _use_new_zipfile_serialization=zipped)
    tensors, header = read_tensors(tmp_path / "model.ckpt")
    assert header == {}
    assert tensors.keys() == release.keys()
    assert all(torch.equal(tensor, release[name]) for name, tensor in tensors.items())


class OmegaConf:
    """The modules of OmegaConf, as far as its pickles name them, while a file is written."""

    def __enter__(self) -> Any:
        self.names = ["omegaconf", "omegaconf.dictconfig", "omegaconf.listconfig", "omegaconf.base", "omegaconf.nodes"]
        sys.modules |= {name: types.ModuleType(name) for name in self.names}
        made = {}
        for module, name in (
            ("dictconfig", "DictConfig"),
            ("listconfig", "ListConfig"),
            ("base", "ContainerMetadata"),
            ("base", "Metadata"),
            ("nodes", "AnyNode"),
        ):
            made[name] = type(name, (), {"__module__": f"omegaconf.{module}"})
            setattr(sys.modules[f"omegaconf.{module}"], name, made[name])
        return types.SimpleNamespace(**made)

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            del sys.modules[name]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_objects_of_omegaconf_are_inert(zipped: bool, tmp_path: Path) -> None:
    weights = {"a.weight": torch.arange(3.0)}
    with OmegaConf() as omegaconf:
        metadata = omegaconf.ContainerMetadata()
        metadata.__dict__ |= {"ref_type": typing.Any, "object_type": dict, "key_type": typing.Any, "optional": True}
        metadata.resolver_cache = defaultdict(dict, {"env": {"A": 1}})
        node, listed, config = omegaconf.AnyNode(), omegaconf.ListConfig(), omegaconf.DictConfig()
        node.__dict__ |= {"_metadata": omegaconf.Metadata(), "_val": 4, "_parent": config}
        listed.__dict__ |= {"_metadata": metadata, "_content": [node]}
        config.__dict__ |= {"_metadata": metadata, "_content": {"ch_mult": listed, "embed_dim": node}}
        content = {"state_dict": weights, "hyper_parameters": {"ddconfig": config, "path": Path("runs")}}
        torch.save(content, tmp_path / "model.ckpt", _use_new_zipfile_serialization=zipped)
    tensors, _ = read_tensors(tmp_path / "model.ckpt")
    assert torch.equal(tensors["a.weight"], weights["a.weight"])
    assert "omegaconf" not in sys.modules


# Stability's configs/inference/sd_xl_base.yaml as it is now: the U-Net has no use_spatial_transformer.
SDXL_BASE = """
model:
  target: sgm.models.diffusion.DiffusionEngine
  params:
    scale_factor: 0.13025
    disable_first_stage_autocast: True
    denoiser_config:
      target: sgm.modules.diffusionmodules.denoiser.DiscreteDenoiser
      params:
        num_idx: 1000
        scaling_config:
          target: sgm.modules.diffusionmodules.denoiser_scaling.EpsScaling
        discretization_config:
          target: sgm.modules.diffusionmodules.discretizer.LegacyDDPMDiscretization
    network_config:
      target: sgm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        adm_in_channels: 2816
        num_classes: sequential
        use_checkpoint: True
        in_channels: 4
        out_channels: 4
        model_channels: 320
        attention_resolutions: [4, 2]
        num_res_blocks: 2
        channel_mult: [1, 2, 4]
        num_head_channels: 64
        use_linear_in_transformer: True
        transformer_depth: [1, 2, 10]
        context_dim: 2048
        spatial_transformer_attn_type: softmax-xformers
    conditioner_config:
      target: sgm.modules.GeneralConditioner
      params:
        emb_models:
          - {is_trainable: False, input_key: txt, target: sgm.modules.encoders.modules.FrozenCLIPEmbedder,
             params: {layer: hidden, layer_idx: 11}}
          - {is_trainable: False, input_key: txt, target: sgm.modules.encoders.modules.FrozenOpenCLIPEmbedder2,
             params: {arch: ViT-bigG-14, version: laion2b_s39b_b160k, freeze: True, layer: penultimate,
                      always_return_pooled: True, legacy: False}}
          - {is_trainable: False, input_key: original_size_as_tuple,
             target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND, params: {outdim: 256}}
          - {is_trainable: False, input_key: crop_coords_top_left,
             target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND, params: {outdim: 256}}
          - {is_trainable: False, input_key: target_size_as_tuple,
             target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND, params: {outdim: 256}}
    first_stage_config:
      target: sgm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig:
          attn_type: vanilla-xformers
          double_z: true
          z_channels: 4
          resolution: 256
          in_channels: 3
          out_ch: 3
          ch: 128
          ch_mult: [1, 2, 4, 4]
          num_res_blocks: 2
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
"""


def test_stabilitys_current_configuration_of_sdxl_is_the_published_model(tmp_path: Path) -> None:
    (tmp_path / "sd_xl_base.yaml").write_text(SDXL_BASE)
    with_option = yaml.safe_load(SDXL_BASE)
    with_option["model"]["params"]["network_config"]["params"]["use_spatial_transformer"] = True
    (tmp_path / "before.yaml").write_text(yaml.safe_dump(with_option))
    found = read_config(tmp_path / "sd_xl_base.yaml")
    assert found == read_config(tmp_path / "before.yaml")
    published = read_config(find("published/sdxl-base"))
    assert found.diffusion.schedule == published.diffusion.schedule
    assert found.diffusion.prediction == published.diffusion.prediction
    for name in ("unet", "text", "text_2"):
        ours, theirs = getattr(found, name).model_dump(), getattr(published, name).model_dump()
        assert {**ours, "sample_size": 0, "source": 0} == {**theirs, "sample_size": 0, "source": 0}, name
