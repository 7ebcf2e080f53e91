"""A single file is read completely or raises a one-line error; none of its code runs."""

from __future__ import annotations

import hashlib
import os
import sys
import types
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from single_files import GOLDEN, NARROW, PLAIN, golden_weights, same_networks, with_weights
from torch import Tensor

from ldm.checkpoint.compvis import SingleFile, read_single_file, write_single_file
from ldm.checkpoint.compvis.contents import Contents
from ldm.conditioning.inpainting import InpaintingConfig
from ldm.config.diffusion import DiffusionConfig
from ldm.errors import UserError
from ldm.models.unet.config import UNetConfig

CONFIG = GOLDEN / "class-vq" / "config.yaml"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return golden_weights("class-vq")


@pytest.fixture(scope="module")
def expected(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> SingleFile:
    path = tmp_path_factory.mktemp("class-vq") / "model.safetensors"
    save_file(weights, path)
    return read_single_file(path, CONFIG)


def expect_error(path: Path, *words: str, ema: bool = False, config: Path | None = CONFIG) -> None:
    with pytest.raises(UserError) as caught:
        read_single_file(path, config, ema)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


# Pickles


class Framework:
    """Modules of a training framework that is not installed, as long as a file is written."""

    def __enter__(self) -> types.ModuleType:
        names = ["pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint"]
        sys.modules |= {name: types.ModuleType(name) for name in names}
        self.names, module = names, sys.modules[names[-1]]
        for name, parents in {"ModelCheckpoint": (object,), "AttributeDict": (dict,)}.items():
            setattr(module, name, type(name, parents, {"__module__": module.__name__, "best": 0.1}))
        return module

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            del sys.modules[name]


def training_checkpoint(weights: dict[str, Tensor], framework: types.ModuleType) -> dict[str, Any]:
    """What the framework wrote in 2022: callbacks by class, numpy's numbers, the optimizer's state."""
    callback = framework.ModelCheckpoint()
    callback.best_model_path = "runs/last.ckpt"
    return {
        "state_dict": weights,
        "epoch": 12,
        "callbacks": {framework.ModelCheckpoint: {"best": np.float64(0.25), "at": np.arange(3)}, "other": callback},
        "hyper_parameters": framework.AttributeDict(rate=np.float32(1e-4), monitor=None),
        "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}}],
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_checkpoint_of_the_training_framework_is_read_without_the_framework(
    zipped: bool, weights: dict[str, Tensor], expected: SingleFile, tmp_path: Path
) -> None:
    with Framework() as framework:
        content = training_checkpoint(weights, framework)
        torch.save(content, tmp_path / "model.ckpt", _use_new_zipfile_serialization=zipped)
    assert same_networks(read_single_file(tmp_path / "model.ckpt", CONFIG), expected)
    assert "pytorch_lightning" not in sys.modules


@pytest.mark.parametrize("wrap", [lambda weights: weights, lambda weights: {"state_dict": weights}])
def test_a_plain_checkpoint_is_read(
    wrap: Callable[..., Any], weights: dict[str, Tensor], expected: SingleFile, tmp_path: Path
) -> None:
    torch.save(wrap(weights), tmp_path / "model.ckpt")
    assert same_networks(read_single_file(tmp_path / "model.ckpt", CONFIG), expected)


class Shell:
    """What a hostile file holds: a call of the operating system's shell."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_carries_code_raises_an_error_that_names_it(
    zipped: bool, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    content = {"state_dict": weights, "extra": Shell(tmp_path / "run")}
    torch.save(content, tmp_path / "model.ckpt", _use_new_zipfile_serialization=zipped)
    expect_error(tmp_path / "model.ckpt", f"{os.system.__module__}.system", "no code was run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint at all", b"\x80\x04\x95", b"PK\x03\x04" + bytes(100), b"\x80\x02cos\nsystem\n(S'ls'\ntR."],
)
def test_what_is_no_checkpoint_raises_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(content)
    expect_error(tmp_path / "model.ckpt", "model.ckpt")


def test_a_checkpoint_that_was_cut_off_raises_an_error(weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "whole.ckpt")
    content = (tmp_path / "whole.ckpt").read_bytes()
    (tmp_path / "model.ckpt").write_bytes(content[: len(content) // 2])
    expect_error(tmp_path / "model.ckpt", "not a complete PyTorch checkpoint")


@pytest.mark.parametrize("content", [[1, 2], {}, {"state_dict": {"a": 1}}, {"state_dict": {1: torch.ones(1)}}])
def test_a_checkpoint_without_weights_raises_an_error(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.ckpt")
    expect_error(tmp_path / "model.ckpt", "state_dict")


# Names and shapes


def test_a_missing_weight_is_named(weights: dict[str, Tensor], tmp_path: Path) -> None:
    name = "model.diffusion_model.middle_block.1.norm.weight"
    save_file({key: weight for key, weight in weights.items() if key != name}, tmp_path / "model.safetensors")
    expect_error(tmp_path / "model.safetensors", f"lacks {name}")


def test_a_weight_too_many_is_named(weights: dict[str, Tensor], tmp_path: Path) -> None:
    extra = {"model.diffusion_model.middle_block.9.weight": torch.ones(3), "zzz": torch.ones(1)}
    save_file(weights | extra, tmp_path / "model.safetensors")
    expect_error(tmp_path / "model.safetensors", "holds model.diffusion_model.middle_block.9.weight and 1 more")


def test_a_weight_of_another_shape_is_named(weights: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(weights | {"cond_stage_model.embedding.weight": torch.ones(10, 31)}, tmp_path / "model.safetensors")
    expect_error(tmp_path / "model.safetensors", "cond_stage_model.embedding.weight has shape (10, 31)", "(10, 32)")


@pytest.mark.parametrize("other", ["uncond-vq", "text-kl-bert"])
def test_a_file_of_another_architecture_raises_an_error(other: str, weights: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(weights, tmp_path / "model.safetensors")
    expect_error(tmp_path / "model.safetensors", "does not match", config=GOLDEN / other / "config.yaml")


def test_what_is_not_a_published_model_asks_for_its_configuration(weights: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(weights, tmp_path / "model.safetensors")
    expect_error(tmp_path / "model.safetensors", "--config", config=None)


def test_buffers_of_the_schedule_and_losses_of_first_stages_are_passed_over(
    weights: dict[str, Tensor], expected: SingleFile, tmp_path: Path
) -> None:
    names = ("betas", "alphas_cumprod", "posterior_variance", "first_stage_model.loss.discriminator.main.0.weight")
    save_file(weights | {name: torch.ones(4) for name in names}, tmp_path / "model.safetensors")
    assert same_networks(read_single_file(tmp_path / "model.safetensors", CONFIG), expected)


def test_a_scale_that_training_has_measured_is_the_latents_own(weights: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(weights | {"scale_factor": torch.tensor(0.25)}, tmp_path / "model.safetensors")
    assert read_single_file(tmp_path / "model.safetensors", CONFIG).contents.autoencoder.scaling_factor == 0.25


def test_weights_of_eight_bits_become_half_precision(weights: dict[str, Tensor], tmp_path: Path) -> None:
    small = {name: weight.to(torch.float8_e4m3fn) for name, weight in weights.items()}
    kept = {"cond_stage_model.embedding.weight": weights["cond_stage_model.embedding.weight"]}
    save_file(small | kept, tmp_path / "model.safetensors")
    networks = read_single_file(tmp_path / "model.safetensors", CONFIG).networks
    made, given = networks["unet"].conv_in.weight, small["model.diffusion_model.input_blocks.0.0.weight"]
    assert made.dtype == torch.float16
    assert torch.equal(made.float(), given.float())
    assert networks["classes"].embedding.weight.dtype == torch.float32


def average_of(name: str) -> str:
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def test_averaged_weights_are_taken_when_asked_for(
    weights: dict[str, Tensor], expected: SingleFile, tmp_path: Path
) -> None:
    averages = {average_of(name): weight * 2 for name, weight in weights.items() if name.startswith("model.")}
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    save_file(weights | averages | counters, tmp_path / "model.safetensors")
    assert same_networks(read_single_file(tmp_path / "model.safetensors", CONFIG), expected)
    found = read_single_file(tmp_path / "model.safetensors", CONFIG, ema=True)
    plain, averaged = expected.networks["unet"].state_dict(), found.networks["unet"].state_dict()
    assert all(torch.equal(averaged[name], weight * 2) for name, weight in plain.items())
    assert torch.equal(found.networks["classes"].embedding.weight, expected.networks["classes"].embedding.weight)


def test_averaged_weights_that_are_not_there_raise_an_error(weights: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(weights | {average_of("model.diffusion_model.out.0.bias"): torch.ones(32)}, tmp_path / "a.safetensors")
    expect_error(
        tmp_path / "a.safetensors", "lacks model_ema.diffusion_modelinput_blocks00bias", "without --ema", ema=True
    )


# One network alone


def test_an_autoencoder_alone_has_no_prefix(tmp_path: Path) -> None:
    model = with_weights(Contents(autoencoder=NARROW))
    write_single_file(model, tmp_path / "vae.safetensors")
    assert "encoder.conv_in.weight" in load_file(tmp_path / "vae.safetensors")
    assert same_networks(read_single_file(tmp_path / "vae.safetensors"), model)


def test_one_network_of_a_described_model_is_read_alone(
    weights: dict[str, Tensor], expected: SingleFile, tmp_path: Path
) -> None:
    for prefix, name in (("first_stage_model.", "autoencoder"), ("model.diffusion_model.", "unet")):
        for cut in (0, len(prefix)):
            alone = {key[cut:]: weight for key, weight in weights.items() if key.startswith(prefix)}
            save_file(alone, tmp_path / "alone.safetensors")
            found = read_single_file(tmp_path / "alone.safetensors", CONFIG)
            assert list(found.networks) == [name]
            state = expected.networks[name].state_dict()
            assert all(torch.equal(weight, state[key]) for key, weight in found.networks[name].state_dict().items())


@pytest.mark.parametrize("config", ["published/kl-f8", "tiny"])
def test_a_unet_is_not_what_another_configuration_describes(
    config: str, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    alone = {name: weight for name, weight in weights.items() if name.startswith("model.")}
    save_file(alone, tmp_path / "unet.safetensors")
    expect_error(tmp_path / "unet.safetensors", "does not match its configuration", config=Path(config))


# What is written


def test_a_condition_stage_that_is_the_first_stage_must_be_the_same(tmp_path: Path) -> None:
    unet = UNetConfig(**PLAIN | {"in_channels": 7}, block_out_channels=(32, 32), attention_layers=(0, 1))
    spatial = InpaintingConfig(in_channels=1, channels=4)
    model = with_weights(Contents(unet=unet, autoencoder=NARROW, spatial=spatial, diffusion=DiffusionConfig()))
    path = tmp_path / "model.safetensors"
    write_single_file(model, path)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    first, condition = "first_stage_model.", "cond_stage_model."
    copies = {condition + name.removeprefix(first): w for name, w in tensors.items() if name.startswith(first)}
    save_file(tensors | {name: w.clone() for name, w in copies.items()}, path, header)
    assert same_networks(read_single_file(path), model)
    other = {condition + "quant_conv.bias": copies[condition + "quant_conv.bias"] + 1}
    save_file(tensors | {name: w.clone() for name, w in copies.items()} | other, path, header)
    expect_error(path, "cond_stage_model.quant_conv.bias", config=None)


def test_the_header_identifies_the_model(expected: SingleFile, tmp_path: Path) -> None:
    write_single_file(expected, tmp_path / "a model.safetensors")
    with safe_open(tmp_path / "a model.safetensors", "pt") as file:
        header = file.metadata()
    metadata = {
        name.removeprefix("modelspec."): value for name, value in header.items() if name.startswith("modelspec.")
    }
    assert metadata.pop("hash_sha256") == "0x" + sha256_after_header(tmp_path / "a model.safetensors")
    assert datetime.fromisoformat(metadata.pop("date")).tzinfo is not None
    assert metadata == {
        "sai_model_spec": "1.0.0",
        "architecture": "latent-diffusion",
        "implementation": "https://github.com/CompVis/latent-diffusion",
        "title": "a model",
        "resolution": "32x32",
        "prediction_type": "epsilon",
    }


def sha256_after_header(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()


def test_a_damaged_configuration_in_a_header_raises_an_error(weights: dict[str, Tensor], tmp_path: Path) -> None:
    for text, word in (("{", "not JSON"), ("[]", "dictionary"), ('{"unet": {"no": 1}}', "unet.no")):
        save_file(weights, tmp_path / "model.safetensors", {"ldm.config": text})
        expect_error(tmp_path / "model.safetensors", "ldm.config", word, config=None)
