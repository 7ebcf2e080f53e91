"""`convert` writes a whole model or nothing."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from single_files import GOLDEN, SMALL_MODELS, golden_weights, same_networks, with_weights
from tiny_pipelines import clip_tokenizer

from ldm.checkpoint.compvis import read_single_file, write_single_file
from ldm.checkpoint.compvis.contents import Contents
from ldm.checkpoint.compvis.convert import Conversion, convert
from ldm.conditioning.inpainting import InpaintingConfig
from ldm.conditioning.text.tokenizer_files import load_tokenizer, save_tokenizer
from ldm.conditioning.text.tokenizers import CLIP_BRACKETS, Tokenizer
from ldm.config.diffusion import DiffusionConfig
from ldm.errors import UserError
from ldm.models.autoencoder.config import AutoencoderConfig
from ldm.models.autoencoder.vq import VQConfig
from ldm.models.unet.config import UNetConfig

AUTOENCODER = AutoencoderConfig(block_out_channels=(32, 32), layers_per_block=1, latent_channels=3)
UNET = UNetConfig(
    in_channels=3,
    out_channels=3,
    block_out_channels=(32, 64),
    layers_per_block=1,
    attention="plain",
    attention_layers=(0, 1),
    num_attention_heads=(2, 4),
    cross_attention_dim=None,
    sample_size=8,
)
MODELS = {
    "an autoencoder": Contents(autoencoder=AUTOENCODER),
    "an autoencoder of kind vq": Contents(
        autoencoder=VQConfig(**AUTOENCODER.model_dump() | {"kind": "vq", "codebook_size": 9})
    ),
    "a U-Net": Contents(unet=UNET),
    "an unconditional model": Contents(autoencoder=AUTOENCODER, unet=UNET, diffusion=DiffusionConfig()),
}


@pytest.mark.parametrize("contents", MODELS.values(), ids=MODELS)
def test_a_folder_and_a_file_hold_the_same(contents: Contents, tmp_path: Path) -> None:
    model = with_weights(contents)
    write_single_file(model, tmp_path / "model.safetensors")
    assert convert(str(tmp_path / "model.safetensors"), tmp_path / "folder", Conversion()) == [tmp_path / "folder"]
    convert(str(tmp_path / "folder"), tmp_path / "again.safetensors", Conversion(format="compvis"))
    first, again = (load_file(tmp_path / f"{name}.safetensors") for name in ("model", "again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], weight) for name, weight in again.items())


def test_half_precision_stays_half(tmp_path: Path) -> None:
    write_single_file(with_weights(MODELS["an autoencoder"], dtype=torch.bfloat16), tmp_path / "model.safetensors")
    convert(str(tmp_path / "model.safetensors"), tmp_path / "folder", Conversion())
    convert(str(tmp_path / "folder"), tmp_path / "again.safetensors", Conversion())
    for path in (tmp_path / "again.safetensors", *(tmp_path / "folder").glob("*.safetensors")):
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.bfloat16}


def test_a_vocabulary_travels_with_a_file_that_we_write(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["a dog playing a trumpet", "three blue cats"], 100, 12)
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    save_file(golden_weights("text-kl-bert"), tmp_path / "model.safetensors")
    asked = Conversion(config=str(GOLDEN / "text-kl-bert" / "config.yaml"), tokenizer=str(tmp_path / "tokenizer"))
    convert(str(tmp_path / "model.safetensors"), tmp_path / "folder", asked)
    convert(str(tmp_path / "folder"), tmp_path / "again.safetensors", Conversion())
    convert(str(tmp_path / "again.safetensors"), tmp_path / "folder-again", Conversion())
    assert load_tokenizer(tmp_path / "folder-again" / "tokenizer").pieces == tokenizer.pieces
    written = load_file(tmp_path / "again.safetensors")
    assert all(torch.equal(weight, written[name]) for name, weight in golden_weights("text-kl-bert").items())


def test_the_originals_configuration_is_written_beside_the_file_when_asked_for(tmp_path: Path) -> None:
    write_single_file(with_weights(MODELS["an unconditional model"]), tmp_path / "model.safetensors")
    asked = Conversion(original_config=True)
    written = convert(str(tmp_path / "model.safetensors"), tmp_path / "again.safetensors", asked)
    assert written == [tmp_path / "again.safetensors", tmp_path / "again.yaml"]
    weights = load_file(tmp_path / "again.safetensors")
    save_file(weights, tmp_path / "bare.safetensors")  # without our header
    with_header = read_single_file(tmp_path / "again.safetensors")
    bare = read_single_file(tmp_path / "bare.safetensors", tmp_path / "again.yaml")
    assert bare.contents.unet == with_header.contents.unet
    assert yaml.safe_load((tmp_path / "again.yaml").read_text())["model"]["target"].endswith(".LatentDiffusion")


def test_a_pickle_is_made_safe_as_a_single_file(tmp_path: Path) -> None:
    torch.save({"state_dict": golden_weights("class-vq")}, tmp_path / "model.ckpt")
    asked = Conversion(config=str(GOLDEN / "class-vq" / "config.yaml"))
    convert(str(tmp_path / "model.ckpt"), tmp_path / "safe.safetensors", asked)
    expected = read_single_file(tmp_path / "model.ckpt", asked.config)
    assert same_networks(read_single_file(tmp_path / "safe.safetensors"), expected)
    with safe_open(tmp_path / "safe.safetensors", "pt") as file:
        assert file.metadata()["modelspec.title"] == "safe"


REFUSED = {
    "already exists": ("model.safetensors", "there", Conversion()),
    "does not exist": ("model.safetensors", "no/where", Conversion()),
    "never as a pickle": ("model.safetensors", "out.ckpt", Conversion()),
    "--format zip": ("model.safetensors", "out", Conversion(format="zip")),
    "must end in .safetensors": ("model.safetensors", "out", Conversion(format="compvis")),
    "must not end in .safetensors": ("model.safetensors", "out.safetensors", Conversion(format="diffusers")),
    "--original-config requires": ("model.safetensors", "out", Conversion(original_config=True)),
    "--tokenizer goes with a text encoder": ("model.safetensors", "out", Conversion(tokenizer="there")),
    "--tokenizer requires a folder": ("model.safetensors", "out.safetensors", Conversion(tokenizer="there")),
    "--config requires": ("there", "out.safetensors", Conversion(config="tiny")),
    "--ema requires": ("there", "out.safetensors", Conversion(ema=True)),
    "no EMA": ("model.safetensors", "out", Conversion(ema=True)),
    "is not a file": ("missing.ckpt", "out", Conversion()),
    "no model 'missing'": ("missing", "out.safetensors", Conversion()),
    "neither a pipeline nor": ("there", "out.safetensors", Conversion()),
    "no configuration 'missing'": ("model.safetensors", "out", Conversion(config="missing")),
    "inpainting, with latents before a mask": ("spatial.safetensors", "out", Conversion()),
    "not a complete safetensors file": ("cut.safetensors", "out", Conversion()),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    write_single_file(with_weights(MODELS["an unconditional model"]), folder / "model.safetensors")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(content[: len(content) // 2])
    unet = UNET.model_copy(update={"in_channels": 7})
    spatial = InpaintingConfig(in_channels=1, channels=4)
    maps = Contents(unet=unet, autoencoder=AUTOENCODER, spatial=spatial, diffusion=DiffusionConfig())
    write_single_file(with_weights(maps), folder / "spatial.safetensors")
    (folder / "there").mkdir()
    return folder


def test_a_vocabulary_that_the_text_encoder_does_not_know_raises_an_error(tmp_path: Path) -> None:
    save_file(golden_weights("text-kl-bert"), tmp_path / "model.safetensors")
    save_tokenizer(clip_tokenizer("!"), tmp_path / "clip")
    words = " ".join(f"w{number}" for number in range(150))  # more pieces than the 128 of the encoder
    save_tokenizer(Tokenizer.train([words] * 3, 200, 12), tmp_path / "large")
    for name, message in (
        ("clip", "it holds a CLIPTokenizer"),
        ("large", "tokens, but the text encoder's table has 128"),
    ):
        asked = Conversion(str(GOLDEN / "text-kl-bert" / "config.yaml"), tokenizer=str(tmp_path / name))
        with pytest.raises(UserError, match=message):
            convert(str(tmp_path / "model.safetensors"), tmp_path / "folder", asked)
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "clip", "large"}


def test_both_vocabularies_of_a_pipeline_are_taken_where_there_are_two_text_encoders(tmp_path: Path) -> None:
    write_single_file(with_weights(SMALL_MODELS["sdxl"]), tmp_path / "model.safetensors")
    for name, pad in (("tokenizer", CLIP_BRACKETS[1]), ("tokenizer_2", "!")):
        save_tokenizer(clip_tokenizer(pad), tmp_path / "other" / name)
    convert(str(tmp_path / "model.safetensors"), tmp_path / "out", Conversion(tokenizer=str(tmp_path / "other")))
    pads = [load_tokenizer(tmp_path / "out" / name).pad_token for name in ("tokenizer", "tokenizer_2")]
    assert pads == [CLIP_BRACKETS[1], "!"]


def test_a_destination_that_cannot_be_written_is_reported_in_one_line(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for module in ("ldm.storage.weights.save_tensors", "ldm.checkpoint.compvis.convert.save_text"):
        monkeypatch.setattr(module, full)
    for name, asked in (("folder", Conversion()), ("model.safetensors", Conversion(original_config=True))):
        with pytest.raises(UserError, match=f"{name} cannot be written: No space left on device"):
            convert(str(sources / "model.safetensors"), tmp_path / name, asked)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("message", REFUSED)
def test_a_failed_conversion_leaves_no_files(message: str, sources: Path) -> None:
    source, destination, asked = REFUSED[message]
    before = sorted(sources.rglob("*"))
    given = source if source == "missing" else str(sources / source)
    with pytest.raises(UserError) as caught:
        convert(given, sources / destination, asked)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(sources.rglob("*")) == before
