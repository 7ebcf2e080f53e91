"""Train on damaged folders and on shards, local and over http, through the real command line."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hostile import encoded, noise, write_hostile
from PIL import Image
from running import Command, here, losses
from serving import serving

from ldm.errors import UserError

SHUFFLED = ("--set", "data.shards.shuffle_buffer=64", "--set", "training.autoencoder.statistics_images=32")
LOGGED = ("--set", "training.autoencoder.log_every=1")


def good_images(folder: Path, count: int) -> None:
    """Readable images, some of them of unusual kinds."""
    for number in range(count):
        image, form = noise((40 + number % 7, 36), seed=number), "PNG"
        if number % 10 == 1:
            image, form = image.convert("CMYK"), "JPEG"
        elif number % 10 == 2:
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        elif number % 10 == 3:
            image, form = image.convert("P"), "GIF"
        path = folder / f"good{number:03d}.{form.lower()}"
        path.write_bytes(encoded(image, form))
        path.with_suffix(".txt").write_text(f"number {number}\n")


def report(run: Path) -> list[str]:
    rows = [json.loads(line) for line in (run / "broken.jsonl").read_text().splitlines()]
    assert all(row["reason"] for row in rows)
    return [row["name"] for row in rows]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder of 500 images and the names of the 40 among them that cannot be used."""
    folder = tmp_path_factory.mktemp("damaged")
    names = write_hostile(folder)
    assert len(names) == 40
    good_images(folder, 460)
    return folder, sorted(names)


FEW = ("--batch-size", 50, "--set", "training.autoencoder.statistics_images=64")


@pytest.mark.slow
def test_training_on_500_images_with_40_hostile_ones_succeeds_and_reports_exactly_these(
    damaged: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, names = damaged
    options = ("train-vae", "tiny", "--data", folder, "--max-steps", 12, *FEW, *LOGGED)
    here(*options, "--save-every", 5, "--out", tmp_path / "run")
    assert report(tmp_path / "run") == names
    stderr = capsys.readouterr().err
    assert "40 unreadable samples" in stderr
    assert all(f"  {name}: " in stderr for name in names)
    assert np.isfinite(losses(tmp_path / "run")).all()
    stopped = tmp_path / "stopped"  # after step 5, and what was found until then is still reported
    shutil.copytree(tmp_path / "run", stopped, ignore=shutil.ignore_patterns("step-000010", "step-000012", "vae"))
    here(*options, "--out", stopped, "--resume")
    assert losses(stopped) == losses(tmp_path / "run")
    assert report(stopped) == names


@pytest.mark.slow
def test_cached_and_uncached_training_replace_hostile_images_alike(
    damaged: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, names = damaged
    here("train-vae", "tiny", "--data", folder, "--max-steps", 1, *FEW, "--out", tmp_path / "vae")
    options = ("train-unet", "tiny", "--vae", tmp_path / "vae", "--set", "training.unet.log_every=1", "--data", folder)
    for cached in ("true", "false"):
        cache = ("--set", f"training.unet.cache_latents={cached}", "--set", "training.unet.sample_prompts=[]")
        here(*options, *cache, "--out", tmp_path / cached, "--batch-size", 50, "--max-steps", 10)
        assert report(tmp_path / cached) == names
    assert losses(tmp_path / "true") == pytest.approx(losses(tmp_path / "false"), rel=1e-5)


@pytest.mark.slow
def test_too_many_broken_images_stop_the_training_with_one_line(
    damaged: tuple[Path, list[str]], tmp_path: Path
) -> None:
    options = ("train-vae", "tiny", "--data", damaged[0], "--max-steps", 12, *FEW, *LOGGED)
    with pytest.raises(
        UserError, match=r"of 5\d\d samples of the data cannot be read.* data\.max_broken 0\.05"
    ) as error:
        here(*options, "--set", "data.max_broken=0.05", "--out", tmp_path / "run")
    assert "\n" not in str(error.value)
    assert len(report(tmp_path / "run")) == 40


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes in shards of 25."""
    written = tmp_path_factory.mktemp("scenes")
    here("data", "scenes", written / "one", "--num", 200, "--size", 32, "--concepts", 20, "--format", "webdataset")
    (written / "eight").mkdir()
    with tarfile.open(written / "one" / "000000.tar") as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive]
    for shard in range(8):
        with tarfile.open(written / "eight" / f"{shard:02d}.tar", "w") as archive:
            for member, content in members[shard * 75 : (shard + 1) * 75]:
                archive.addfile(member, io.BytesIO(content))
    return written


@pytest.mark.slow
def test_two_processes_train_on_shards_like_one(ldm: Command, shards: Path, tmp_path: Path) -> None:
    data = f"{shards}/eight/{{00..07}}.tar"
    options = ("--data", data, "--batch-size", 8, "--max-steps", 30, *LOGGED, *SHUFFLED)
    here("train-vae", "tiny", *options, "--out", tmp_path / "one")
    workers = ("--set", "data.workers=2")
    done = ldm("train-vae", "tiny", *options, "--out", tmp_path / "two", *workers, processes=2)
    assert "2 processes" in done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


@pytest.mark.slow
def test_a_run_on_shards_over_http_equals_one_on_files_and_resumes_exactly(shards: Path, tmp_path: Path) -> None:
    few = (
        "--batch-size",
        8,
        "--max-steps",
        28,
        *LOGGED,
        *SHUFFLED,
        "--save-every",
        14,
        "--set",
        "data.random_flip=true",
    )
    here("train-vae", "tiny", "--data", shards / "eight", "--out", tmp_path / "files", *few)
    with serving(shards / "eight", drop_every=20) as server:
        data = ("--data", f"{server.url}/{{00..07}}.tar")
        here("train-vae", "tiny", *data, "--out", tmp_path / "http", *few)
        assert server.dropped > 0
        stopped = tmp_path / "stopped"
        shutil.copytree(tmp_path / "http", stopped, ignore=shutil.ignore_patterns("step-000028", "vae"))
        here("train-vae", "tiny", *data, "--out", stopped, *few, "--resume")
    assert losses(tmp_path / "http") == losses(tmp_path / "files") == losses(stopped)


@pytest.mark.slow
def test_a_unet_trains_on_shards_without_cached_latents(shards: Path, tiny_vae: Path, tmp_path: Path) -> None:
    options = ("--data", shards / "one", "--vae", tiny_vae, "--batch-size", 8, "--max-steps", 4)
    with pytest.raises(UserError, match=r"training\.unet\.cache_latents=false"):
        here("train-unet", "tiny", *options, "--out", tmp_path / "x")
    few = ("--set", "training.unet.cache_latents=false", "--out", tmp_path / "run")
    here("train-unet", "tiny", *options, *few)
    assert (tmp_path / "run" / "model_index.json").is_file()


@pytest.mark.slow
def test_both_stages_train_in_buckets(ldm: Command, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(48):
        noise((48, 48) if number % 2 else (80, 48), seed=number).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"noise of number {number}")
    options = ("--data", folder, "--batch-size", 8, "--max-steps", 8, "--set", "data.buckets={}")
    here("train-vae", "tiny", *options, *LOGGED, "--out", tmp_path / "vae")
    unet = ("--set", "training.unet.cache_latents=false", "--set", "training.unet.log_every=1")
    here("train-unet", "tiny", *options, *unet, "--vae", tmp_path / "vae", "--out", tmp_path / "one")
    with pytest.raises(UserError, match=r"do not support data\.buckets"):
        here("train-unet", "tiny", *options, "--vae", tmp_path / "vae", "--out", tmp_path / "x")
    ldm("train-unet", "tiny", *options, *unet, "--vae", tmp_path / "vae", "--out", tmp_path / "two", processes=2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
