"""Networks and pipelines are saved and loaded bit for bit; incomplete folders raise an error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from ldm.checkpoint.diffusers import pipeline as diffusers_pipeline
from ldm.checkpoint.diffusers.pipeline import load_pipeline, save_pipeline
from ldm.checkpoint.find import find_autoencoder, find_model
from ldm.checkpoint.pipeline import Pipeline
from ldm.conditioning.text.bert import BertConfig, BertTextEncoder
from ldm.conditioning.text.conditioning import TextConditioning
from ldm.conditioning.text.files import load_text_encoder
from ldm.conditioning.text.tokenizer_files import load_tokenizer
from ldm.conditioning.text.tokenizers import Tokenizer
from ldm.config.diffusion import DiffusionConfig, schedule_config, weighting_config
from ldm.errors import UserError
from ldm.info.describe import describe
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.unet.config import UNetConfig
from ldm.models.unet.unet import UNet

AUTOENCODER = AutoencoderConfig(
    block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=16, scaling_factor=0.7
)
UNET = UNetConfig(
    block_out_channels=(8, 16),
    attention_layers=(0, 1),
    num_attention_heads=2,
    norm_num_groups=4,
    cross_attention_dim=16,
    layers_per_block=1,
    sample_size=8,
)
DIFFUSION = DiffusionConfig(
    prediction="v",
    schedule=schedule_config(zero_terminal_snr=True, spacing="trailing"),
    weighting=weighting_config(kind="min_snr", gamma=3.0),
)


def make_pipeline() -> Pipeline:
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a dog playing a trumpet", "three blue cats"], 100, 12)
    text = BertConfig(max_length=12, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    unet = UNet(UNET)
    for weight in unet.parameters():
        nn.init.normal_(weight, 0.0, 0.1)
    conditioning = TextConditioning([(BertTextEncoder(text, tokenizer.vocab_size), tokenizer)])
    return Pipeline(Autoencoder(AUTOENCODER), unet, DIFFUSION, {"text": conditioning})


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return make_pipeline()


@pytest.fixture(scope="module")
def saved(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_pipeline(pipeline, folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "pipeline"))


def assert_same_weights(made: nn.Module, expected: nn.Module) -> None:
    assert made.state_dict().keys() == expected.state_dict().keys()
    for name, weight in expected.state_dict().items():
        assert torch.equal(made.state_dict()[name], weight), name


def test_a_pipeline_comes_back_bit_by_bit(pipeline: Pipeline, folder: Path) -> None:
    loaded = load_pipeline(folder)
    assert loaded.modules.keys() == pipeline.modules.keys() == {"autoencoder", "unet", "text_encoder"}
    for name, network in loaded.modules.items():
        assert_same_weights(network, pipeline.modules[name])
        assert not network.training
    assert loaded.autoencoder.config == AUTOENCODER
    assert loaded.denoiser.config == UNET
    assert loaded.diffusion == DIFFUSION
    [ours], [theirs] = (each.conditionings["text"].encoders for each in (loaded, pipeline))
    assert torch.equal(ours[1](["two dogs"])[0], theirs[1](["two dogs"])[0])


def test_loaded_weights_can_be_trained(folder: Path) -> None:
    unet = UNet.from_pretrained(folder / "unet").train()
    unet(torch.randn(1, 4, 8, 8), torch.tensor([1]), torch.randn(1, 3, 16)).sum().backward()
    assert all(weight.grad is not None for weight in unet.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_written_and_read_as_asked(pipeline: Pipeline, tmp_path: Path, dtype: torch.dtype) -> None:
    save_pipeline(pipeline, tmp_path, dtype)
    loaded = load_pipeline(tmp_path, torch.float32)
    for name, weight in pipeline.denoiser.state_dict().items():
        assert torch.equal(loaded.denoiser.state_dict()[name], weight.to(dtype).float())
    assert load_pipeline(tmp_path, dtype).modules["text_encoder"].embeddings.LayerNorm.weight.dtype == dtype


def test_shards_come_back_and_give_way_to_one_file(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.denoiser.save_pretrained(tmp_path, shard_size=20_000)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"diffusion_pytorch_model-00001-of-{len(files):05d}.safetensors"
    assert_same_weights(UNet.from_pretrained(tmp_path), pipeline.denoiser)
    pipeline.denoiser.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert_same_weights(UNet.from_pretrained(tmp_path), pipeline.denoiser)


def test_a_half_precision_variant_is_read_if_it_is_the_only_one(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.denoiser.save_pretrained(tmp_path, torch.float16)
    stem = tmp_path / "diffusion_pytorch_model"
    stem.with_suffix(".safetensors").rename(stem.with_suffix(".fp16.safetensors"))
    assert UNet.from_pretrained(tmp_path).conv_in.weight.dtype == torch.float32


def test_an_autoencoder_whose_statistics_were_not_measured_says_so_when_it_comes_back(tmp_path: Path) -> None:
    config = AUTOENCODER.model_copy(update={"scaling_factor": None, "statistics": "channel"})
    Autoencoder(config).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["scaling_factor"] == 1.0
    assert Autoencoder.from_pretrained(tmp_path).config == config


def test_the_names_that_stable_diffusion_1_has_in_its_autoencoder_are_understood(tmp_path: Path) -> None:
    from ldm.storage.store import load_tensors, save_tensors

    autoencoder = Autoencoder(AUTOENCODER)
    autoencoder.save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {}
    for name, tensor in load_tensors(weights).items():
        for new_part, old_part in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f"attentions.0.{new_part}.", f"attentions.0.{old_part}.")
        old[name] = tensor.clone()
    assert "decoder.mid_block.attentions.0.proj_attn.bias" in old
    save_tensors(weights, old)
    assert_same_weights(Autoencoder.from_pretrained(tmp_path), autoencoder)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


UNKNOWN = {
    "unet/config.json": [
        ("only_cross_attention", True),
        ("class_embed_type", "table"),
        ("addition_embed_type", "image"),
        ("attention_head_dim", None),
        ("time_embedding_type", "fourier"),
        ("mid_block_type", None),
        ("num_attention_heads", 4),
        ("down_block_types", ["AttnDownBlock2D", "DownBlock2D"]),
        ("up_block_types", ["UpBlock2D", "UpBlock2D"]),
        ("transformer_layers_per_block", [1, [1, 2]]),
        ("block_out_channels", 8),
        ("sample_size", None),
        ("a_field_of_tomorrow", 3),
    ],
    "vae/config.json": [
        ("act_fn", "relu"),
        ("down_block_types", ["AttnDownEncoderBlock2D"] * 2),
        ("sample_size", [16, 32]),
        ("norm_num_groups", 3),
    ],
    "scheduler/scheduler_config.json": [
        ("trained_betas", [0.1]),
        ("beta_schedule", "sigmoid"),
        ("prediction_type", "noise"),
        ("_class_name", "FlowMatchEulerDiscreteScheduler"),
    ],
    "text_encoder/config.json": [
        ("model_type", "roberta"),
        ("hidden_act", "relu"),
        ("intermediate_size", 17),
        ("type_vocab_size", 1),
    ],
    "model_index.json": [
        ("_class_name", "StableDiffusionUpscalePipeline"),
        ("text_encoder", ["transformers", "CLIPTextModel"]),
        ("text_encoder_2", ["transformers", "CLIPTextModel"]),
    ],
    "tokenizer/tokenizer_config.json": [("model_max_length", 10**30), ("model_max_length", None)],
}


@pytest.mark.parametrize(
    ("file", "field", "value"), [(file, *change) for file, changes in UNKNOWN.items() for change in changes]
)
def test_an_unsupported_field_raises_an_error_that_names_it(folder: Path, file: str, field: str, value: object) -> None:
    edit(folder / file, **{field: value})
    with pytest.raises(UserError) as raised:
        load_pipeline(folder)
    message = str(raised.value)
    assert file in message
    assert "\n" not in message
    assert (field in message) or (str(value) in message)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("damage", [cut, Path.unlink])
@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_missing_or_cut_off_file_is_an_error_of_one_line(
    folder: Path, file: str, damage: Callable[[Path], None]
) -> None:
    (folder / "tokenizer" / "vocab.txt").unlink()  # a tokenizer would be built from it
    damage(folder / file)
    with pytest.raises(UserError, match=str(folder)) as raised:
        load_pipeline(folder)
    assert "\n" not in str(raised.value)


def test_weights_that_the_config_does_not_describe_raise_an_error_that_names_them(folder: Path) -> None:
    for change, name in (
        ({"layers_per_block": 2}, "lack .*resnets.1"),
        ({"cross_attention_dim": 32}, r"attn2.to_k.weight .* has shape \(16, 16\)"),
        ({"use_linear_projection": False}, "proj_in.weight .* has shape"),
    ):
        fields = json.loads((folder / "unet" / "config.json").read_text())
        edit(folder / "unet" / "config.json", **change)
        with pytest.raises(UserError, match=name):
            UNet.from_pretrained(folder / "unet")
        (folder / "unet" / "config.json").write_text(json.dumps(fields))
    edit(folder / "text_encoder" / "config.json", num_hidden_layers=0)
    with pytest.raises(UserError, match=r"have encoder.layer.0.*and \d+ more, which config.json does not describe"):
        load_text_encoder(folder / "text_encoder")


def test_components_that_do_not_fit_raise_an_error(folder: Path) -> None:
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=8)
    with pytest.raises(UserError, match="pads to 8 tokens, but the text encoder has 12 positions"):
        load_pipeline(folder)


@pytest.mark.parametrize("side", ["padding_side", "truncation_side"])
def test_a_tokenizer_that_pads_or_truncates_on_the_left_raises_an_error(folder: Path, side: str) -> None:
    edit(folder / "tokenizer" / "tokenizer_config.json", **{side: "left"})
    with pytest.raises(UserError, match=f"the field {side} is 'left'"):
        load_pipeline(folder)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match="weights only as a pickle, which ldm does not load"):
        load_pipeline(folder)


@pytest.mark.parametrize("places", [[], {"a": 3, "b": "unet.safetensors"}])
def test_a_shard_index_without_files_raises_an_error(folder: Path, places: object) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    for read in (load_pipeline, lambda folder: describe(str(folder))):
        with pytest.raises(UserError, match="has no weight_map"):
            read(folder)


def test_the_index_is_gone_while_a_pipeline_is_written(
    pipeline: Pipeline, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        assert not (folder / "model_index.json").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(diffusers_pipeline, "save_scheduler", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_pipeline(pipeline, folder)
    with pytest.raises(UserError, match="but no pipeline"):
        load_pipeline(folder)


def test_a_run_means_its_top_or_else_its_newest_step(tmp_path: Path) -> None:
    for step in ("step-000500", "step-002000", "step-1000", ".step-003000.tmp", "step-x"):
        (tmp_path / step / "vae").mkdir(parents=True)
    assert find_model(tmp_path) == tmp_path / "step-002000"
    assert find_autoencoder(tmp_path) == tmp_path / "step-002000" / "vae"
    (tmp_path / "model_index.json").write_text("{}")
    assert find_model(tmp_path) == tmp_path


def test_an_autoencoder_is_found_in_its_own_folder_and_in_a_pipeline(folder: Path) -> None:
    assert find_autoencoder(folder) == find_autoencoder(folder / "vae") == folder / "vae"
    with pytest.raises(UserError, match="has no autoencoder"):
        find_autoencoder(folder / "scheduler")


@pytest.mark.parametrize("name", ["no-such-model", "a/b/c", "../up", ""])
def test_an_unknown_model_is_an_error_that_names_the_possibilities(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir("/")
    if name in ("../up", ""):
        monkeypatch.setattr(Path, "is_dir", lambda self: False)
    with pytest.raises(UserError, match=r"give a run, a diffusers directory, a built-in model .* or a Hub id"):
        find_model(name)


def test_a_tokenizer_that_is_not_a_bert_tokenizer_raises_an_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 12}')
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(UserError, match=r"tokenizer.json is no tokenizer"):
        load_tokenizer(tmp_path)
