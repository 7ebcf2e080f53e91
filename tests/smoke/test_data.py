"""Training on what people have: damaged folders, and shards, here and over http, through the real command line."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hostile import encoded, noise, write_hostile
from PIL import Image
from running import Command
from serving import serving

from ldm.data.pictures import read_picture

LOGGED = ("--set", "training.autoencoder.log_every=1")


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def good_pictures(folder: Path, count: int) -> None:
    """Readable pictures, some of them of unusual kinds."""
    for number in range(count):
        picture, form = noise((40 + number % 7, 36), seed=number), "PNG"
        if number % 10 == 1:
            picture, form = picture.convert("CMYK"), "JPEG"
        elif number % 10 == 2:
            picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
        elif number % 10 == 3:
            picture, form = picture.convert("P"), "GIF"
        path = folder / f"good{number:03d}.{form.lower()}"
        path.write_bytes(encoded(picture, form))
        path.with_suffix(".txt").write_text(f"number {number}\n")


@pytest.mark.slow
def test_500_pictures_of_which_40_are_hostile_train_through_and_the_report_names_just_those(
    ldm: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    names = write_hostile(folder)
    assert len(names) == 40
    good_pictures(folder, 460)
    options = ("--data", folder, "--batch-size", 50, "--max-steps", 12, "--set", "training.autoencoder.save_every=5")
    done = ldm("train-vae", "tiny", *options, "--out", tmp_path / "run", *LOGGED)
    rows = [json.loads(line) for line in (tmp_path / "run" / "broken.jsonl").read_text().splitlines()]
    assert sorted(row["name"] for row in rows) == sorted(names)
    assert all(row["reason"] for row in rows)
    assert "40 unreadable samples" in done.stderr
    assert all(f"  {name}: " in done.stderr for name in names)
    assert np.isfinite(losses(tmp_path / "run")).all()
    # The same after an interruption, though what came before it was read by another process.
    stopped = tmp_path / "stopped"
    shutil.copytree(tmp_path / "run", stopped, ignore=shutil.ignore_patterns("step-000012", "vae", "samples"))
    ldm("train-vae", "tiny", *options, "--out", stopped, *LOGGED, "--resume")
    assert losses(stopped) == losses(tmp_path / "run")
    assert (stopped / "broken.jsonl").read_text() == (tmp_path / "run" / "broken.jsonl").read_text()
    unet = ("train-unet", "tiny", "--vae", tmp_path / "run", "--set", "training.unet.log_every=1")
    for cached in ("true", "false"):
        run, cache = tmp_path / f"unet-{cached}", ("--set", f"training.unet.cache_latents={cached}")
        ldm(*unet, "--data", folder, *cache, "--out", run, "--batch-size", 50, "--max-steps", 10)
        rows = [json.loads(line) for line in (run / "broken.jsonl").read_text().splitlines()]
        assert sorted(row["name"] for row in rows) == sorted(names)
    assert losses(tmp_path / "unet-true") == pytest.approx(losses(tmp_path / "unet-false"), rel=1e-5)
    done = ldm("train-vae", "tiny", *options, "--set", "data.max_broken=0.05", "--out", tmp_path / "x", check=False)
    assert done.returncode == 2
    assert "data.max_broken 0.05" in done.stderr
    assert done.stderr.count("samples of the data cannot be read") == 1


@pytest.fixture(scope="module")
def shards(ldm: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes in shards of 25."""
    import tarfile

    written = tmp_path_factory.mktemp("scenes")
    ldm("data", "scenes", written / "one", "--num", 200, "--size", 32, "--concepts", 20, "--format", "webdataset")
    (written / "eight").mkdir()
    with tarfile.open(written / "one" / "000000.tar") as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive]
    for shard in range(8):
        with tarfile.open(written / "eight" / f"{shard:02d}.tar", "w") as archive:
            for member, content in members[shard * 75 : (shard + 1) * 75]:
                archive.addfile(member, io.BytesIO(content))
    return written


def in_two_processes(*words: object) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "ldm", *map(str, words)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
def test_two_processes_train_on_shards_as_one_does(ldm: Command, shards: Path, tmp_path: Path) -> None:
    data = f"{shards}/eight/{{00..07}}.tar"
    options = ("--data", data, "--batch-size", 8, "--max-steps", 30, *LOGGED, "--set", "data.shards.shuffle_buffer=64")
    ldm("train-vae", "tiny", *options, "--out", tmp_path / "one")
    told = in_two_processes("train-vae", "tiny", *options, "--out", tmp_path / "two", "--set", "data.workers=2")
    assert "2 processes" in told
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


@pytest.mark.slow
def test_a_run_on_shards_over_http_is_that_on_files_and_continues_exactly(
    ldm: Command, shards: Path, tmp_path: Path
) -> None:
    few = ("--batch-size", 8, "--max-steps", 28, *LOGGED, "--save-every", 14, "--set", "data.random_flip=true")
    ldm("train-vae", "tiny", "--data", shards / "eight", "--out", tmp_path / "files", *few)
    with serving(shards / "eight", drop_every=20) as server:
        data = ("--data", f"{server.url}/{{00..07}}.tar")
        ldm("train-vae", "tiny", *data, "--out", tmp_path / "http", *few)
        assert server.dropped > 0
        stopped = tmp_path / "stopped"
        shutil.copytree(tmp_path / "http", stopped, ignore=shutil.ignore_patterns("step-000028", "vae"))
        ldm("train-vae", "tiny", *data, "--out", stopped, *few, "--resume")
    assert losses(tmp_path / "http") == losses(tmp_path / "files") == losses(stopped)


@pytest.mark.slow
def test_a_unet_trains_on_shards_and_says_what_it_cannot_keep(
    ldm: Command, shards: Path, tiny_vae: Path, tmp_path: Path
) -> None:
    options = ("--data", shards / "one", "--vae", tiny_vae, "--batch-size", 8, "--max-steps", 4)
    done = ldm("train-unet", "tiny", *options, "--out", tmp_path / "x", check=False)
    assert done.returncode == 2
    assert "training.unet.cache_latents=false" in done.stderr
    few = ("--set", "training.unet.cache_latents=false", "--out", tmp_path / "run")
    ldm("train-unet", "tiny", *options, *few)
    assert (tmp_path / "run" / "model_index.json").is_file()


@pytest.mark.slow
def test_both_stages_train_in_buckets(ldm: Command, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(48):
        noise((48, 48) if number % 2 else (80, 48), seed=number).save(folder / f"{number}.png")
    options = ("--data", folder, "--batch-size", 8, "--max-steps", 8, "--set", "data.buckets={}")
    ldm("train-vae", "tiny", *options, *LOGGED, "--out", tmp_path / "vae")
    unet = ("--set", "training.unet.cache_latents=false", "--set", "training.unet.log_every=1")
    ldm("train-unet", "tiny", *options, *unet, "--vae", tmp_path / "vae", "--out", tmp_path / "one")
    done = ldm("train-unet", "tiny", *options, "--vae", tmp_path / "vae", "--out", tmp_path / "x", check=False)
    assert done.returncode == 2
    assert "not together with data.buckets" in done.stderr
    in_two_processes("train-unet", "tiny", *options, *unet, "--vae", tmp_path / "vae", "--out", tmp_path / "two")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert read_picture(folder / "0.png").size == (80, 48)
