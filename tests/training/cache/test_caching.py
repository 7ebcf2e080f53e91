"""Caches: contents, training that equals training from the images, and errors for stale caches."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny_stages import Colours
from tiny_texts import CLIP, clip_tokenizer

from ldm import config
from ldm.conditioning.text.bert import BertConfig
from ldm.conditioning.text.encoder import make_text_encoder
from ldm.conditioning.text.files import load_text_encoder, save_text_encoder
from ldm.conditioning.text.tokenizer_files import load_tokenizer, save_tokenizer
from ldm.conditioning.text.tokenizers import Tokenizer
from ldm.config.data import DataConfig
from ldm.config.root import Config
from ldm.data.broken import UnreadableError
from ldm.data.cached import INDEX, CachedData
from ldm.data.loader import BatchShare, TrainingData
from ldm.data.sources import Source, open_source
from ldm.errors import UserError
from ldm.generation import find_device
from ldm.models.autoencoder.autoencoder import Autoencoder
from ldm.processes import ProcessShare
from ldm.training.cache.caching import CacheWriter, check_folder
from ldm.training.cache.encoders import load_encoders
from ldm.training.cache.fingerprints import Encoders, check_cache, facts_of, text_digest
from ldm.training.runs.run import Run, complete_config
from ldm.training.stages.stage import StartingPoint
from ldm.training.stages.unet import UNetStage

CPU = find_device("cpu")
DATA = DataConfig(size=32)


class Painted(Colours):
    """Noise with two captions each; image 4 cannot be read, nor can the caption of image 7."""

    def image(self, index: int) -> np.ndarray:
        if index == 4:
            raise UnreadableError("four.png", "it is empty")
        return np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)

    def captions(self, index: int) -> list[str]:
        if index == 7:
            raise UnreadableError("seven.txt", "not in UTF-8")
        return [f"colour number {index}", f"a flat image, the {index}th"]


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    shape = config.load("tiny", []).autoencoder.model_copy(update={"sample_size": 32, "scaling_factor": 1.0})
    Autoencoder(shape).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(1)
    save_text_encoder(make_text_encoder(CLIP.model_copy(update={"projection_dim": 16})), folder)
    save_tokenizer(clip_tokenizer(), folder)
    return folder


def settings(clip: Path, *overrides: str) -> Config:
    text = {"kind": "clip", "source": str(clip), "hidden_size": 64, "projection_dim": 16}
    given = ["training.unet.batch_size=8", "training.unet.condition_dropout=0.4", f"text={json.dumps(text)}"]
    return complete_config(config.load("tiny", [*given, *overrides]), clip)


def writer(
    folder: Path, encoders: Encoders, source: Source | None = None, data: DataConfig = DATA, per_shard: int = 5
) -> CacheWriter:
    source = source or Painted()
    facts = facts_of(source, data, encoders, ProcessShare(), per_shard)
    return CacheWriter(folder, source, facts, encoders, ProcessShare(), CPU, batch_size=2)


@pytest.fixture(scope="module")
def encoders(vae: Path, clip: Path) -> Encoders:
    return load_encoders(str(vae), settings(clip), own=False)


@pytest.fixture(scope="module")
def cache(encoders: Encoders, tmp_path_factory: pytest.TempPathFactory) -> CachedData:
    return writer(tmp_path_factory.mktemp("caches") / "cache", encoders).write()


def test_a_cache_has_the_moments_the_captions_and_the_contexts_of_every_caption(
    cache: CachedData, encoders: Encoders
) -> None:
    encoder, tokenizer = encoders.text
    assert len(cache) == 12
    assert [shard.images for shard in cache.shards] == [5, 5, 2]
    for index in sorted({*range(12)} - {4, 7}):
        image = torch.from_numpy(Painted().image(index)).permute(2, 0, 1)[None] / 127.5 - 1
        assert cache.captions(index) == Painted().captions(index)
        for caption in (*Painted().captions(index), ""):
            with torch.no_grad():
                moments, embedded = encoders.autoencoder.encode(image).moments, encoder(*tokenizer([caption]))
            torch.testing.assert_close(cache.moments([index]), moments, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(cache.embedded("context", [index], [caption]), embedded.context)
            torch.testing.assert_close(cache.embedded("pooled", [index], [caption]), embedded.pooled)
    assert {index: broken.name for index, broken in cache.unreadable.items()} == {4: "four.png", 7: "seven.txt"}
    assert cache.captions(4) == Painted().captions(4)
    with pytest.raises(UnreadableError, match="seven"):
        cache.captions(7)
    with pytest.raises(UserError, match="holds latents and no images"):
        open_source(str(cache.folder), DATA).image(0)


def stage_on(source: Source, configuration: Config, vae: Path, run: Path) -> UNetStage:
    torch.manual_seed(0)
    return UNetStage.build(
        configuration, source, Accelerator(cpu=True), Run(run, resume=False), StartingPoint(vae=str(vae))
    )


def losses(stage: UNetStage, source: Source) -> list[float]:
    data = TrainingData(source, DATA, BatchShare(8), 0, stage.needs_images, unreadable=stage.unreadable)
    return [stage.train_step([data[step, 0]], step).losses["loss"].item() for step in range(1, 6)]


def test_training_from_a_cache_runs_no_encoder_and_has_the_losses_of_training_from_images(
    cache: CachedData, clip: Path, vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, kept = (settings(clip, f"training.unet.cache_latents={word}") for word in ("false", "true"))
    expected = losses(stage_on(Painted(), plain, vae, tmp_path / "plain"), Painted())
    in_run = losses(stage_on(Painted(), kept, vae, tmp_path / "in_run"), Painted())
    assert in_run == pytest.approx(expected, rel=1e-5)
    stage = stage_on(cache, kept, vae, tmp_path / "cached")

    def fail(*_: object) -> None:
        raise AssertionError("an encoder ran")

    monkeypatch.setattr(stage.pipeline.autoencoder, "encode", fail)
    monkeypatch.setattr(stage.pipeline.modules["text_encoder"], "forward", fail)
    assert losses(stage, cache) == pytest.approx(expected, rel=1e-5)


def test_a_text_encoder_in_training_reads_the_captions_of_the_cache(
    cache: CachedData, clip: Path, vae: Path, tmp_path: Path
) -> None:
    text = ["text={vocab_size: 60, max_length: 8, hidden_size: 64, num_hidden_layers: 1}", "training.unet.batch_size=8"]
    plain, kept = (config.load("tiny", [*text, f"training.unet.cache_latents={word}"]) for word in ("false", "true"))
    expected = losses(stage_on(Painted(), plain, vae, tmp_path / "plain"), Painted())
    assert losses(stage_on(cache, kept, vae, tmp_path / "cached"), cache) == pytest.approx(expected, rel=1e-5)


class Interrupted(Painted):
    def image(self, index: int) -> np.ndarray:
        if index == 8:
            raise KeyboardInterrupt
        return super().image(index)


def test_interrupted_caching_keeps_complete_files_and_continues_with_the_others(
    cache: CachedData, encoders: Encoders, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        writer(folder, encoders, Interrupted()).write()
    first, empty = folder / "latents-00000.safetensors", folder / "empty.safetensors"
    assert sorted(folder.iterdir()) == [empty, first]
    with pytest.raises(UserError, match="incomplete cache: finish it with ldm cache --resume"):
        open_source(str(folder), DATA)
    with pytest.raises(UserError, match="finish it with --resume"):
        check_folder(folder, resume=False)
    with pytest.raises(UserError, match=r"differs in data.size: choose another --out"):
        writer(folder, encoders, data=DataConfig(size=16)).write()
    written = first.stat().st_mtime_ns
    check_folder(folder, resume=True)
    assert writer(folder, encoders).write().shards == cache.shards
    assert first.stat().st_mtime_ns == written
    with pytest.raises(UserError, match=r"differs in the data's names, sizes or captions: choose another"):
        writer(folder, encoders, Colours()).write()


def stale(cache: CachedData, encoders: Encoders, data: DataConfig = DATA) -> str:
    with pytest.raises(UserError) as error:
        check_cache(CachedData(cache.folder), data, encoders, ProcessShare())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_stale_cache_raises_an_error_with_the_difference(
    cache: CachedData, encoders: Encoders, tmp_path: Path
) -> None:
    check_cache(cache, DATA, encoders, ProcessShare())
    assert "its images are 32 pixels wide, data.size is 64" in stale(cache, encoders, DataConfig(size=64))
    fields = DataConfig(size=32, caption_fields=("prompt",))
    assert "data.caption_fields are [], not ['prompt']" in stale(cache, encoders, fields)
    other = Autoencoder(encoders.autoencoder.config)
    assert "another autoencoder" in stale(cache, replace(encoders, autoencoder=other))
    encoder, tokenizer = encoders.text
    assert "another text encoder" in stale(cache, replace(encoders, text=(make_text_encoder(CLIP), tokenizer)))
    words = Tokenizer.train(["colour"], 60, 24)
    assert "text encoder or tokenizer" in stale(cache, replace(encoders, text=(encoder, words)))


def test_the_decoder_and_the_statistics_may_change(cache: CachedData, encoders: Encoders) -> None:
    other = Autoencoder(encoders.autoencoder.config.model_copy(update={"scaling_factor": 0.5}))
    other.encoder.load_state_dict(encoders.autoencoder.encoder.state_dict())
    other.quant_conv.load_state_dict(encoders.autoencoder.quant_conv.state_dict())
    check_cache(cache, DATA, Encoders(other), ProcessShare())


def test_altered_and_missing_files_are_named(encoders: Encoders, tmp_path: Path) -> None:
    cache = writer(tmp_path / "cache", encoders).write()
    paths = [cache.folder / shard.name for shard in cache.shards]
    content = bytearray(paths[1].read_bytes())
    content[-100] ^= 1
    paths[1].write_bytes(content)
    assert "latents-00001.safetensors changed since" in stale(cache, encoders)
    (cache.folder / "empty.safetensors").unlink()
    assert "latents-00001.safetensors and 1 more files changed since" in stale(cache, encoders)
    for damage in ("{", "{}", '{"facts": {"version": 0}}'):
        (cache.folder / INDEX).write_text(damage)
        with pytest.raises(UserError, match="is not the index of a cache"):
            CachedData(cache.folder)


def test_a_folder_of_other_things_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(UserError, match="contains other files than a cache"):
        check_folder(tmp_path, resume=True)


@pytest.mark.parametrize("kind", ["clip", "penultimate", "bert"])
def test_an_encoder_that_went_through_its_folder_has_the_same_fingerprint(kind: str, tmp_path: Path) -> None:
    words = Tokenizer.train([f"colour number {index}" for index in range(12)], 60, 40)
    bert = BertConfig(vocab_size=words.vocab_size, max_length=40, hidden_size=64, num_attention_heads=2)
    section = bert if kind == "bert" else CLIP.model_copy(update={"layer": "last" if kind == "clip" else kind})
    encoder, tokenizer = make_text_encoder(section), words if kind == "bert" else clip_tokenizer()
    save_text_encoder(encoder, tmp_path)
    save_tokenizer(tokenizer, tmp_path)
    loaded = load_text_encoder(tmp_path), load_tokenizer(tmp_path, tokenizer.max_length)
    assert text_digest(*loaded) == text_digest(encoder, tokenizer)
