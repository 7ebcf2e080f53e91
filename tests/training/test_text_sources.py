"""Text encoders from a source: found, checked against the configuration, kept as they are or trained further."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import save_file
from tiny_stages import Colours, micro_batches
from tiny_texts import CLIP, clip_tokenizer
from torch import nn

from ldm import config
from ldm.conditioning.text.bert import BertConfig
from ldm.conditioning.text.encoder import TextSection, make_text_encoder
from ldm.conditioning.text.files import load_text_encoder, save_text_encoder
from ldm.conditioning.text.ldm_bert import LDMBertConfig
from ldm.conditioning.text.open_clip import OpenCLIPConfig
from ldm.conditioning.text.sources import load_source
from ldm.conditioning.text.tokenizer_files import save_tokenizer
from ldm.conditioning.text.tokenizers import Tokenizer
from ldm.config.root import Config
from ldm.errors import UserError
from ldm.generation import TextToImage
from ldm.training.cache.fingerprints import text_digest
from ldm.training.plan import plan
from ldm.training.runs.run import Run, complete_config
from ldm.training.stages.stage import StartingPoint
from ldm.training.stages.unet import UNetStage

BERT = BertConfig(vocab_size=60, max_length=40, hidden_size=64, num_hidden_layers=2, num_attention_heads=2)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources") / "clip"
    save_text_encoder(make_text_encoder(CLIP), folder)
    save_tokenizer(clip_tokenizer(), folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources") / "pipeline"
    tokenizer = Tokenizer.train([f"colour number {i}" for i in range(12)], BERT.vocab_size, BERT.max_length)
    save_text_encoder(make_text_encoder(BERT.model_copy(update={"vocab_size": tokenizer.vocab_size})), folder / "bert")
    save_tokenizer(tokenizer, folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ldm.models.autoencoder.autoencoder import Autoencoder

    folder = tmp_path_factory.mktemp("vae")
    shape = config.load("tiny", []).autoencoder.model_copy(update={"sample_size": 32, "scaling_factor": 1.0})
    Autoencoder(shape).save_pretrained(folder)
    return folder


def settings(run: Path, text: dict[str, object], *overrides: str) -> Config:
    """`tiny` with another text encoder, as the command line completes it."""
    given = ["training.unet.batch_size=8", "training.unet.cache_latents=false", f"text={json.dumps(text)}", *overrides]
    return complete_config(config.load("tiny", given), run)


def stage_of(configuration: Config, run: Path, vae: Path, resume: bool = False) -> UNetStage:
    torch.manual_seed(0)
    folder = Run(run, resume)
    UNetStage.check(configuration, folder, StartingPoint(vae=str(vae)))
    return UNetStage.build(configuration, Colours(), Accelerator(cpu=True), folder, StartingPoint(vae=str(vae)))


def state_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_equal(network: nn.Module, state: dict[str, torch.Tensor]) -> None:
    found = network.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_a_frozen_clip_stays_as_it_is_and_goes_with_the_run(clip: Path, vae: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    text = {"kind": "clip", "source": str(clip), "hidden_size": 64}
    configuration = settings(run, text)
    assert configuration.text == CLIP.model_copy(update={"source": str(clip)})
    stage = stage_of(configuration, run, vae)
    encoder = stage.pipeline.modules["text_encoder"]
    before = state_of(encoder)
    assert_equal(load_text_encoder(clip), before)
    moving = [weight.clone() for weight in stage.networks["unet"].parameters()]
    stage.train_step(micro_batches(1), 1)
    stage.train_step(micro_batches(2), 2)
    assert_equal(stage.conditionings[0].encoders[0][0], before)
    assert not stage.conditionings[0].encoders[0][0].training
    assert all(
        weight.grad is None and not weight.requires_grad
        for weight in stage.conditionings[0].encoders[0][0].parameters()
    )
    assert not torch.equal(moving[-1], list(stage.networks["unet"].parameters())[-1])
    trained = sum(weight.numel() for group in stage.optimizers["unet"].param_groups for weight in group["params"])
    assert trained == sum(weight.numel() for weight in stage.pipeline.denoiser.parameters())
    assert not any("text" in name for name in stage.state()["networks"]["unet"])

    step = Run(run, resume=False).save(2, stage.save, stage.state(), configuration)
    pipe = TextToImage.from_pretrained(step, device="cpu")
    [(encoder, tokenizer)] = pipe.pipeline.conditionings["text"].encoders
    assert_equal(encoder, before)
    assert tokenizer.pad_token == "!"
    [image] = pipe("colour number 3", num_inference_steps=2)
    assert image.size == (32, 32)

    away = tmp_path / "away"  # a run that goes on needs its source no more
    clip.rename(away)
    try:
        again = settings(run, text)
        assert again == configuration
        resumed = stage_of(again, run, vae, resume=True)
        resumed.load_state(stage.state())
        assert_equal(resumed.conditionings[0].encoders[0][0], before)
        with pytest.raises(UserError, match=r"text.frozen is False, but True in the run"):
            settings(run, text | {"frozen": False})
    finally:
        away.rename(clip)


@pytest.mark.parametrize("kind", ["clip", "bert"])
def test_an_encoder_that_is_not_frozen_starts_from_its_source_and_is_trained(
    kind: str, clip: Path, bert: Path, vae: Path, tmp_path: Path
) -> None:
    run, source = tmp_path / "run", {"clip": clip, "bert": bert}[kind]
    configuration = settings(run, {"kind": kind, "source": str(source), "hidden_size": 64, "frozen": False})
    assert configuration.text.max_length == {"clip": 24, "bert": 32}[kind]  # as many as asked for, and as there are
    stage = stage_of(configuration, run, vae)
    before = [weight.clone() for weight in stage.networks["unet"].text_encoder.parameters()]
    for step in (1, 2, 3):
        stage.train_step(micro_batches(step), step)
    after = list(stage.networks["unet"].text_encoder.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    step_folder = Run(run, resume=False).save(3, stage.save, stage.state(), configuration)
    TextToImage.from_pretrained(step_folder, device="cpu")("a", num_inference_steps=1)
    resumed = stage_of(configuration, run, vae, resume=True)
    resumed.load_state(stage.state())
    assert_equal(resumed.networks["unet"], stage.networks["unet"].state_dict())


def test_an_ldm_bert_finds_its_vocabulary_in_the_captions(vae: Path, tmp_path: Path) -> None:
    text = {"kind": "ldm_bert", "vocab_size": 90, "max_length": 12, "hidden_size": 64, "num_hidden_layers": 1}
    stage = stage_of(settings(tmp_path, text), tmp_path, vae)
    [(encoder, tokenizer)] = stage.pipeline.conditionings["text"].encoders
    assert encoder.vocab_size == tokenizer.vocab_size <= 90
    for step in (1, 2, 3):
        assert torch.isfinite(stage.train_step(micro_batches(step), step).losses["loss"])
    stage.save(tmp_path / "saved")
    TextToImage.from_pretrained(tmp_path / "saved", device="cpu")("a", num_inference_steps=1)


def test_a_model_in_the_cache_of_the_hub_needs_no_network(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cached = tmp_path / "models--somebody--clip"
    shutil.copytree(clip, cached / "snapshots" / "0123abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123abc")
    configuration = settings(tmp_path / "run", {"kind": "clip", "source": "somebody/clip", "hidden_size": 64})
    encoder, tokenizer = load_source(configuration.text)
    assert_equal(encoder, state_of(load_text_encoder(clip)))
    assert (tokenizer.max_length, tokenizer.pad_token) == (24, "!")


REFUSED = {
    r"text.num_hidden_layers is 3, there 2": {"num_hidden_layers": 3},
    r"text.max_length is 30, there 24": {"max_length": 30},
    r"text.projection_dim is 5, there None": {"projection_dim": 5},
    r"text.kind is bert, the encoder of text.source .* is a clip": {"kind": "bert"},
    r"cross_attention_dim is 64, but the context has text.hidden_size \(32\)": {"hidden_size": 32},
    r"text.source: no model 'nobody/no-such-model': there is no such folder, and the download from the Hub failed": {
        "source": "nobody/no-such-model"
    },
    r"text.source /no/such/folder: there is no such folder": {"source": "/no/such/folder"},
}


@pytest.mark.parametrize(("message", "change"), REFUSED.items())
def test_a_mismatch_with_the_source_raises_an_error_that_names_it(
    message: str, change: dict[str, object], clip: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        settings(tmp_path, {"kind": "clip", "source": str(clip), "hidden_size": 64} | change)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("text.kind clip needs text.source", {"kind": "clip", "hidden_size": 64, "num_attention_heads": 2}),
        ("text.frozen without text.source", {"kind": "bert", "hidden_size": 64, "frozen": True}),
        ("text.tokens is boxes", {"kind": "ldm_bert", "hidden_size": 64, "tokens": "boxes"}),
    ],
)
def test_a_missing_encoder_raises_an_error(message: str, text: dict[str, object], vae: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        stage_of(settings(tmp_path, text), tmp_path, vae)


def test_the_plan_counts_what_is_trained(clip: Path, tmp_path: Path) -> None:
    text = {"kind": "clip", "source": str(clip), "hidden_size": 64}
    assert "text encoder" not in plan("unet", settings(tmp_path, text), "scenes")
    assert "text encoder" in plan("unet", settings(tmp_path, text | {"frozen": False}), "scenes")


def test_a_completed_configuration_is_written_whole_and_read_back(clip: Path, tmp_path: Path) -> None:
    configuration = settings(tmp_path, {"kind": "clip", "source": str(clip), "hidden_size": 64})
    (tmp_path / "config.yaml").write_text(config.dump(configuration))
    assert yaml.safe_load(config.dump(configuration))["text"]["num_hidden_layers"] == 2
    assert complete_config(config.load(str(tmp_path / "config.yaml"), []), tmp_path / "new") == configuration


TINY = {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 3}
OPEN: dict[str, object] = {"kind": "open_clip", "model": "tiny", "hidden_size": 64}


@pytest.fixture
def open_clip_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The weights of both halves of an architecture of open_clip small enough for a test."""
    import open_clip.factory

    vision = {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4}
    tiny = {"embed_dim": 20, "vision_cfg": vision, "text_cfg": TINY}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", tiny)
    state = open_clip.create_model("tiny").state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "weights.pt")
    return tmp_path


def open_clip_section(**changes: object) -> TextSection:
    return OpenCLIPConfig(**OPEN | {"max_length": 24, "num_hidden_layers": 3, "num_attention_heads": 4} | changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_an_open_clip_comes_from_a_file_of_weights_and_goes_with_the_run(
    open_clip_file: Path, name: str, vae: Path
) -> None:
    run = open_clip_file / "run"
    configuration = settings(run, OPEN | {"source": str(open_clip_file / name)})
    assert (configuration.text.num_hidden_layers, configuration.text.num_attention_heads) == (3, 4)
    stage = stage_of(configuration, run, vae)
    assert torch.isfinite(stage.train_step(micro_batches(1), 1).losses["loss"])
    step = Run(run, resume=False).save(1, stage.save, stage.state(), configuration)
    pipe = TextToImage.from_pretrained(step, device="cpu")
    captions = ["colour number 3", "a trumpet"]
    [trained], [drawing] = (each.conditionings["text"].encoders for each in (stage.pipeline, pipe.pipeline))
    with torch.no_grad():
        expected, found = (encoder(*tokenizer(captions)).context for encoder, tokenizer in (trained, drawing))
    torch.testing.assert_close(found, expected)
    [again] = stage_of(configuration, run, vae, resume=True).pipeline.conditionings["text"].encoders
    assert again[0].config.kind == "clip"
    assert text_digest(*trained) == text_digest(*again)  # so a cache of contexts fits the run when it goes on


@pytest.mark.usefixtures("open_clip_file")
@pytest.mark.parametrize(
    ("message", "change"),
    [
        (r"text.model 'tinyy': open_clip has no such architecture; did you mean 'tiny'", {"model": "tinyy"}),
        (r"its text tower is not CLIP's own", {"model": "ViT-B-16-SigLIP"}),
        (r"text.num_hidden_layers is 7, there 3", {"num_hidden_layers": 7}),
    ],
)
def test_a_missing_open_clip_raises_an_error_that_names_it(
    message: str, change: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        settings(tmp_path, OPEN | {"source": "somewhere"} | change)


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


def test_published_weights_that_cannot_be_had_and_pickles_of_code_are_one_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ldm.conditioning.text.open_clip_files import load_open_clip

    whole = OpenCLIPConfig(source="laion2b_s32b_b79k")
    torch.save({"token_embedding.weight": Malicious()}, tmp_path / "bad.pt")
    for section, message in (
        (whole, r"'laion2b_s32b_b79k' of open_clip's ViT-H-14 is not in the cache and cannot be fetched"),
        (whole.model_copy(update={"source": "best"}), r"'best' is neither a file nor .* those are: laion2b_s32b_b79k"),
        (whole.model_copy(update={"source": str(tmp_path / "bad.pt")}), r"bad.pt contains more than weights"),
    ):
        with pytest.raises(UserError, match=message) as raised:
            load_open_clip(section)
        assert "\n" not in str(raised.value)
    assert "run" not in capsys.readouterr().out


def test_to_logits_is_kept_but_not_trained() -> None:
    encoder = make_text_encoder(LDMBertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1))
    encoder(torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3)).context.sum().backward()
    without = {name for name, weight in encoder.named_parameters() if weight.grad is None}
    assert without == {"to_logits.weight", "to_logits.bias"}
