"""`ldm cache` and training from what it made, through the real command line."""

import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from hostile import noise
from running import Command, here, losses

from ldm.data.cached import INDEX, CachedData
from ldm.errors import UserError


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty images with captions, one of them truncated."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(60):
        path = folder / f"{number:02d}.png"
        noise((40 + number % 7, 36), seed=number).save(path)
        path.with_suffix(".txt").write_text(f"number {number}\nimage {number}\n")
    (folder / "17.png").write_bytes((folder / "17.png").read_bytes()[:500])
    return folder


@pytest.fixture(scope="module")
def vae(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "vae"
    here("train-vae", "tiny", "--data", images, "--max-steps", 2, "--batch-size", 8, "--out", run)
    return run


FEW = ("--batch-size", 8, "--max-steps", 12, "--set", "training.unet.log_every=1")


@pytest.mark.slow
def test_two_processes_make_the_same_cache_and_training_from_it_has_the_same_losses(
    ldm: Command, images: Path, vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("cache", images, "--model", vae, "--shard-size", 13, "--batch-size", 8)
    here(*options, "--out", tmp_path / "one")
    assert "latents of 60 images" in capsys.readouterr().out
    ldm(*options, "--out", tmp_path / "two", processes=2)
    index = json.loads((tmp_path / "one" / INDEX).read_text())
    assert json.loads((tmp_path / "two" / INDEX).read_text()) == index
    assert [words[0] for words in index["unreadable"].values()] == ["17.png"]
    train = ("train-unet", "tiny", "--vae", vae, *FEW, "--data")
    here(*train, tmp_path / "two", "--out", tmp_path / "cached", "--set", "data.workers=2")
    for kept in ("true", "false"):
        here(*train, images, "--out", tmp_path / kept, "--set", f"training.unet.cache_latents={kept}")
        assert losses(tmp_path / kept) == pytest.approx(losses(tmp_path / "cached"), rel=1e-5)
        assert (tmp_path / kept / "broken.jsonl").read_text() == (tmp_path / "cached" / "broken.jsonl").read_text()


@pytest.mark.slow
def test_two_processes_train_from_a_cache_as_one_does_and_say_what_a_cache_cannot_do(
    ldm: Command, images: Path, vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("cache", images, "--model", vae, "--shard-size", 13, "--batch-size", 8)
    here(*options, "--out", tmp_path / "one")
    with pytest.raises(UserError, match=r"finish it with --resume"):
        here(*options, "--out", tmp_path / "one")
    train = ("train-unet", "tiny", "--vae", vae, *FEW, "--data")
    here(*train, tmp_path / "one", "--out", tmp_path / "alone")
    ldm(*train, tmp_path / "one", "--out", tmp_path / "both", processes=2)
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
    with pytest.raises(UserError, match=r"its images are 32 pixels wide, data.size is 64"):
        here(*train, tmp_path / "one", "--out", tmp_path / "x", "--set", "data.size=64")
    with pytest.raises(UserError, match=r"do not support data\.random_flip"):
        here(*train, tmp_path / "one", "--out", tmp_path / "x", "--set", "data.random_flip=true")
    with pytest.raises(UserError, match=r"is a cache, which holds latents and no images"):
        here("train-vae", "tiny", "--data", tmp_path / "one", "--out", tmp_path / "y")
    capsys.readouterr()
    here(*train, tmp_path / "one", "--out", tmp_path / "z", "--dry-run")
    assert "tried for" in capsys.readouterr().out


@pytest.mark.slow
def test_the_frozen_text_encoder_of_a_model_is_cached_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = ("--set", "text.frozen=true", "--set", "data.scenes.num=40")
    # In batches as large as those of training, so that both are rounded alike: Adam's first steps on a trained model
    # make 2e-4 of the losses after five steps out of 3e-7 of the latents.
    here("cache", "scenes", "--model", "emoji", *scenes, "--batch-size", 8, "--out", tmp_path / "cache")
    assert "latents and contexts of 40 images" in capsys.readouterr().out
    names = ("mixed_precision='no'", "text_learning_rate=null", "sample_prompts=[]", "cache_latents=false")
    options = [word for name in names for word in ("--set", f"training.unet.{name}")]
    train = ("train-unet", "emoji", "--init", "emoji", *scenes, *options, *FEW, "--max-steps", 4, "--save-every", 2)
    here(*train, "--data", "scenes", "--out", tmp_path / "plain")
    here(*train, "--data", tmp_path / "cache", "--out", tmp_path / "cached")
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    stopped = tmp_path / "stopped"  # its own autoencoder and text encoder are those of the cache
    shutil.copytree(tmp_path / "cached", stopped, ignore=shutil.ignore_patterns("step-000004"))
    here(*train, "--data", tmp_path / "cache", "--out", stopped, "--resume")
    assert losses(stopped)[:3] == losses(tmp_path / "cached")[:3]
    assert "not exactly" not in capsys.readouterr().err


@pytest.mark.slow
def test_streamed_shards_are_cached_in_their_order_and_train_from_the_cache(
    images: Path, vae: Path, tmp_path: Path
) -> None:
    (tmp_path / "tars").mkdir()
    for shard in range(3):
        with tarfile.open(tmp_path / "tars" / f"{shard}.tar", "w") as archive:
            for number in range(20 * shard, 20 * shard + 20):
                for suffix in ("png", "txt"):
                    archive.add(images / f"{number:02d}.{suffix}", f"{number:02d}.{suffix}")
    here("cache", tmp_path / "tars", "--model", vae, "--out", tmp_path / "cache")
    here("cache", images, "--model", vae, "--out", tmp_path / "folder")
    streamed, folder = CachedData(tmp_path / "cache"), CachedData(tmp_path / "folder")
    assert [shard.images for shard in streamed.shards] == [20, 20, 20]
    assert streamed.unreadable.keys() == folder.unreadable.keys() == {17}
    assert [streamed.captions(n) for n in range(60)] == [folder.captions(n) for n in range(60)]
    difference = streamed.moments(range(60)) - folder.moments(range(60))
    assert difference.abs().max() < 1e-4
    here("train-unet", "tiny", "--vae", vae, *FEW, "--data", tmp_path / "cache", "--out", tmp_path / "run")
    with pytest.raises(UserError, match="run `ldm cache` first"):
        here("train-unet", "tiny", "--vae", vae, *FEW, "--data", tmp_path / "tars", "--out", tmp_path / "x")


@pytest.mark.slow
def test_caching_that_was_killed_resumes_and_gives_the_same_cache(images: Path, vae: Path, tmp_path: Path) -> None:
    options = ("cache", images, "--model", vae, "--shard-size", 1, "--batch-size", 8)
    here(*options, "--out", tmp_path / "whole")
    killed = tmp_path / "killed"
    words = [sys.executable, "-m", "ldm", *map(str, options), "--out", str(killed)]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while len(list(killed.glob("latents-*"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (killed / ".latents-00059.safetensors.1.tmp").write_bytes(b"half")
    done = {path: path.stat().st_mtime_ns for path in killed.glob("latents-*")}
    assert len(done) >= 5
    assert not (killed / INDEX).exists()
    here(*options, "--out", killed, "--resume")
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert json.loads((killed / INDEX).read_text()) == json.loads((tmp_path / "whole" / INDEX).read_text())
    assert not list(killed.glob(".*"))
