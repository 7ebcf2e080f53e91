"""Descriptions of files by their headers and of runs by their configuration; other targets raise an error."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from tiny_models import random_pipeline

from ldm import config
from ldm.checkpoint.compvis.contents import Contents
from ldm.checkpoint.compvis.files import SingleFile, write_single_file
from ldm.checkpoint.diffusers.pipeline import save_pipeline
from ldm.errors import UserError
from ldm.info.describe import describe, of_config
from ldm.info.headers import read_folder
from ldm.info.report import report
from ldm.info.text import as_text
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.storage.store import save_tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "pipeline"
    save_pipeline(random_pipeline(), folder)
    return folder


def count(network: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def test_the_report_of_a_pipeline_has_the_parameters_of_its_networks(folder: Path) -> None:
    pipeline, facts = random_pipeline(), report(describe(str(folder)))
    autoencoder, unet, text = (pipeline.modules[name] for name in ("autoencoder", "unet", "text_encoder"))
    assert facts["kind"] == "pipeline"
    assert facts["parameters"] == {
        "autoencoder": {
            "encoder": count(autoencoder.encoder) + count(autoencoder.quant_conv),
            "decoder": count(autoencoder.decoder) + count(autoencoder.post_quant_conv),
            "total": count(autoencoder),
        },
        "unet": {"total": count(unet)},
        "text": {"total": count(text)},
        "total": count(autoencoder) + count(unet) + count(text),
    }
    assert facts["image"] == [3, 16, 16]
    assert facts["latents"] == [4, 8, 8]
    assert facts["context"] == [8, 16]
    assert facts["latent_statistics"] == {"scaling_factor": 0.8, "shift_factor": None}
    assert facts["diffusion"]["prediction"] == "v"
    assert facts["memory"]["float32"] == 4 * facts["parameters"]["total"] == 2 * facts["memory"]["bfloat16"]


def test_one_network_of_a_pipeline_is_described_alone(folder: Path) -> None:
    facts = report(describe(str(folder / "unet")))
    assert facts["kind"] == "network"
    assert facts["parameters"].keys() == {"unet", "total"}
    assert facts["flops"].keys() == {"unet"}
    assert facts["context"] == [77, 16]  # CLIP's length, without a text encoder


def test_the_report_of_a_run_has_its_step_and_training_options(tmp_path: Path) -> None:
    step = tmp_path / "run" / "step-000400"
    save_pipeline(random_pipeline(), step)
    (step / "config.yaml").write_text(config.dump(config.load("tiny")))
    (tmp_path / "run" / "step-000200").mkdir()
    for target in (step, tmp_path / "run"):
        facts = report(describe(str(target)))
        assert facts["kind"] == "run"
        assert facts["training"]["step"] == 400
        assert facts["training"]["max_steps"] == 400
        assert facts["training"]["learning_rate"] == 1e-3
    assert "U-Net, step 400 of 400 steps of 32 images of 32x32, learning rate 0.001" in as_text(facts)


def test_a_name_of_a_model_and_of_a_configuration_means_the_model() -> None:
    assert describe("emoji").kind == "pipeline"
    assert describe("configs/emoji.yaml").kind == "configuration"


def test_the_report_of_the_built_in_model_fits_a_terminal() -> None:
    lines = as_text(report(describe("emoji"))).splitlines()
    assert lines[0] == "emoji: a pipeline"
    assert any(line.startswith("latents") and "4x16x16, scaling factor" in line for line in lines)
    assert max(map(len, lines)) <= 120


def sparse(path: Path, shapes: dict[str, list[int]]) -> None:
    """Write a safetensors file whose tensors take no space on the disk."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(torch.tensor(shape).prod())
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)


def test_parameters_of_a_file_are_counted_from_its_header_alone(tmp_path: Path) -> None:
    """Its 40 GB of tensors do not exist."""
    path = tmp_path / "model.safetensors"
    sparse(
        path,
        {
            "model.diffusion_model.input_blocks.0.0.weight": [100_000, 90_000],
            "first_stage_model.encoder.conv_in.weight": [1000, 1000],
            "first_stage_model.decoder.conv_in.weight": [10, 1000],
            "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": [1000, 1000, 1000],
            "betas": [1000],
        },
    )
    assert report(describe(str(path)))["parameters"] == {
        "autoencoder": {"encoder": 1_000_000, "decoder": 10_000, "total": 1_010_000},
        "unet": {"total": 9_000_000_000},
        "text": {"total": 1_000_000_000},
        "other": {"total": 1000},
        "total": 10_001_011_000,
    }


def test_a_file_of_a_published_model_is_recognized_by_its_shapes(tmp_path: Path) -> None:
    """With CompVis' names; its 6 GB of tensors do not exist."""
    loaded = config.load("published/txt2img-1p4B")
    contents = Contents.of_config(loaded)
    shapes: dict[str, list[int]] = {}
    with torch.device("meta"):
        for name, rules in contents.rules(contents.prefixes()).items():
            tensors = rules.to_theirs(contents.make(name).state_dict())
            shapes |= {key: list(tensor.shape) for key, tensor in tensors.items()}
    sparse(tmp_path / "model.safetensors", shapes)
    facts, expected = report(describe(str(tmp_path / "model.safetensors"))), report(of_config("", loaded))
    assert facts["kind"] == "single file"
    for name in ("parameters", "flops", "image", "latents", "context", "latent_statistics", "diffusion"):
        assert facts[name] == expected[name], name


def test_a_file_written_by_ldm_has_its_configuration_in_its_header(tmp_path: Path) -> None:
    sizes = {"latent_channels": 2, "block_out_channels": (32, 32), "layers_per_block": 1, "sample_size": 16}
    contents = Contents(autoencoder=AutoencoderConfig(**sizes))
    autoencoder = contents.make("autoencoder")
    write_single_file(SingleFile(contents, {"autoencoder": autoencoder}), tmp_path / "vae.safetensors")
    facts = report(describe(str(tmp_path / "vae.safetensors")))
    assert facts["parameters"]["autoencoder"]["total"] == count(autoencoder)
    assert facts["image"] == [3, 16, 16]
    assert facts["flops"].keys() == {"encode", "decode"}


def test_a_damaged_configuration_in_a_header_is_a_note(tmp_path: Path) -> None:
    weights = {"encoder.conv_in.weight": torch.zeros(3)}
    save_tensors(tmp_path / "vae.safetensors", weights, {"ldm.config": "{"})
    facts = report(describe(str(tmp_path / "vae.safetensors")))
    assert facts["parameters"]["total"] == 3
    assert "ldm.config in its header is not JSON" in facts["notes"][0]


def test_positions_and_counters_are_not_counted_as_parameters(tmp_path: Path) -> None:
    weights = {"text_model.embeddings.position_ids": torch.arange(7), "text_model.weight": torch.zeros(3).bfloat16()}
    save_tensors(tmp_path / "model.safetensors", weights)
    assert report(describe(str(tmp_path / "model.safetensors")))["parameters"]["total"] == 3


def test_shards_and_half_precision_variants_are_counted_once(folder: Path, tmp_path: Path) -> None:
    save_pipeline(random_pipeline(), tmp_path / "sharded", dtype=torch.float16, shard_size=20_000)
    whole, sharded = (report(describe(str(each))) for each in (folder, tmp_path / "sharded"))
    assert len(list((tmp_path / "sharded" / "unet").glob("*.safetensors"))) > 1
    assert sharded["parameters"] == whole["parameters"]


def test_an_unsupported_field_is_a_note_and_the_parameters_are_still_counted(folder: Path, tmp_path: Path) -> None:
    save_pipeline(random_pipeline(), tmp_path / "other")
    path = tmp_path / "other" / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dual_cross_attention": True}))
    facts = report(describe(str(tmp_path / "other")))
    assert facts["parameters"] == report(describe(str(folder)))["parameters"]
    assert "dual_cross_attention is True, which ldm does not support" in facts["notes"][0]
    assert "unet" not in facts["flops"]


def test_parameters_of_a_folder_without_weights_come_from_its_configuration(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_bytes((folder / "unet" / "config.json").read_bytes())
    facts = report(describe(str(tmp_path / "unet")))
    assert facts["parameters"]["unet"]["total"] == count(random_pipeline().denoiser)
    assert facts["notes"] == [f"{tmp_path / 'unet'} has no .safetensors to count"]


def test_a_resumed_run_is_described_by_its_newest_step_and_not_by_files_at_its_top(tmp_path: Path) -> None:
    save_pipeline(random_pipeline(), tmp_path)
    (tmp_path / "model_index.json").unlink()
    random_pipeline().autoencoder.save_pretrained(tmp_path / "step-000900" / "vae")
    facts = report(describe(str(tmp_path)))
    assert facts["parameters"].keys() == {"autoencoder", "total"}


def test_unsupported_targets_raise_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02")
    (tmp_path / "cut.safetensors").write_bytes((1000).to_bytes(8, "little") + b"{")
    for name, header in (
        ("list", "[]"),
        ("metadata", '{"__metadata__": [1]}'),
        ("shape", '{"a": {"dtype": "F32", "shape": [1099511627776], "data_offsets": [0, 4]}}'),
    ):
        content = len(header).to_bytes(8, "little") + header.encode() + bytes(4 * (name == "shape"))
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    (tmp_path / "empty").mkdir()
    for target, words in (
        (tmp_path / "model.ckpt", "is a pickle: convert it to safetensors with `ldm convert` first"),
        (tmp_path / "cut.safetensors", "is not a complete safetensors file"),
        (tmp_path / "list.safetensors", "its header is not a table of tensors"),
        (tmp_path / "metadata.safetensors", "its metadata is not a table"),
        (tmp_path / "shape.safetensors", "a of shape [1099511627776] has 4 bytes"),
        (tmp_path / "empty", "is not a model: it has no config.json, model_index.json or finished step"),
        (
            "nobody/nothing",
            "'nobody/nothing' is not a file, a run, a diffusers directory, a built-in model or one of the",
        ),
    ):
        with pytest.raises(UserError, match=re.escape(words)) as error:
            describe(str(target))
        assert "\n" not in str(error.value)


def test_measured_statistics_are_written_on_request_only_and_give_unit_variance(tmp_path: Path) -> None:
    from ldm.info.measure import measure

    folder = tmp_path / "vae"
    random_pipeline().autoencoder.save_pretrained(folder)
    before = Autoencoder.from_pretrained(folder).config
    first = measure(describe(str(folder)), "scenes", 16, write=False)
    assert Autoencoder.from_pretrained(folder).config == before
    assert first["before"]["scaling_factor"] == 0.8 != first["after"]["scaling_factor"]
    measure(describe(str(folder)), "scenes", 16, write=True)
    again = measure(describe(str(folder)), "scenes", 16, write=False)
    scale = again["before"]["scaling_factor"]
    variances = [
        (std * scale) ** 2 + (mean * scale) ** 2 for mean, std in zip(again["mean"], again["std"], strict=True)
    ]
    assert sum(variances) / len(variances) == pytest.approx(1.0, abs=1e-4)
    assert {header.dtype for header in read_folder(folder).values()} == {"F32"}


def test_statistics_are_not_written_below_a_u_net_that_was_trained_with_the_old_ones(folder: Path) -> None:
    from ldm.info.measure import measure

    with pytest.raises(UserError, match="was trained on latents with the old statistics"):
        measure(describe(str(folder)), "scenes", 16, write=True)
    with pytest.raises(UserError, match="--measure needs the folder of an autoencoder, not the configuration tiny"):
        measure(describe("tiny"), "scenes", 16, write=False)


def test_a_compvis_configuration_is_described() -> None:
    path = Path(__file__).parents[1] / "checkpoint" / "golden" / "class-vq" / "config.yaml"
    shapes = json.loads((path.parent / "keys.json").read_text())["keys"]
    found = report(describe(str(path)))
    assert found["latents"] == [4, 8, 8]
    assert found["parameters"]["unet"]["total"] == sum(
        math.prod(shape) for name, shape in shapes.items() if name.startswith("model.diffusion_model.")
    )
