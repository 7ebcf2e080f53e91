"""What is fetched of a repository, and what is said when nothing can be."""

from __future__ import annotations

import pytest

from ldm.checkpoint.hub import choose, fetch
from ldm.errors import UserError

STABLE_DIFFUSION = [
    ".gitattributes",
    "README.md",
    "model_index.json",
    "v1-5-pruned.ckpt",
    "v1-5-pruned-emaonly.safetensors",
    "feature_extractor/preprocessor_config.json",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/pytorch_model.bin",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
]


def test_of_stable_diffusion_one_variant_of_each_network_is_fetched() -> None:
    assert {name for name in choose(STABLE_DIFFUSION) if name.endswith(".safetensors")} == {
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    assert {"model_index.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json"} <= set(
        choose(STABLE_DIFFUSION)
    )
    assert not any(name.startswith(("safety_checker", "feature_extractor")) for name in choose(STABLE_DIFFUSION))


def test_shards_and_half_precision_are_fetched_if_there_is_no_other_file() -> None:
    shards = [f"unet/diffusion_pytorch_model-{n:05d}-of-00002.safetensors" for n in (1, 2)]
    half = ["vae/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.non_ema.safetensors"]
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    assert set(choose([*shards, *half, index])) == {*shards, half[0], index}


def test_a_network_alone_in_a_repository_is_fetched() -> None:
    files = ["config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "a/b/c.json"]
    assert choose(files) == ["config.json", "diffusion_pytorch_model.safetensors"]


def test_without_a_connection_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"no model 'nobody/nothing': .* the download from the Hub failed"):
        fetch("nobody/nothing")
