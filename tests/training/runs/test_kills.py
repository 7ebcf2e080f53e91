"""Whatever ends a run, nothing is lost: killed runs end as others do, and a full disk harms no older save."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nursery import Nursery

from ldm.storage.store import load_tensors

STEPS, KILLS = 32, 10
SHARED = ("--data", "scenes", "--batch-size", 4, "--max-steps", STEPS, "--save-every", 3)
OPTIONS = ("data.scenes.num=16", "data.scenes.concepts=5")
OPTIONS += tuple(
    f"training.{part}.{option}"
    for part in ("autoencoder", "unet")
    for option in ("validation_images=16", "log_every=1", "ema_others=[0.5]")
)
PLAYING = ("loss.adversarial.weight=0.5", "loss.adversarial.start_step=3", "loss.adversarial.discriminator_channels=4")
VAE = (*PLAYING, "autoencoder.block_out_channels=[8,8]", "autoencoder.norm_num_groups=4")
VAE += ("unet.sample_size=16", "training.autoencoder.statistics_images=16", "unet.block_out_channels=[8,16]")
# Dropout draws from torch's own generator, unlike all else.
UNET = ("unet.dropout=0.1", "training.unet.sample_prompts=[]", "unet.norm_num_groups=4")


def words(stage: str, vae: Path, out: Path) -> list[object]:
    options = (*OPTIONS, *VAE, *UNET)
    given = ["--vae", vae] if stage == "unet" else []
    sets = [word for option in options for word in ("--set", option)]
    return [f"train-{stage}", "tiny", *SHARED, *given, *sets, "--out", out]


@pytest.fixture(scope="module")
def small_vae(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "vae"
    finish(nursery, words("vae", out, out), out.with_suffix(".txt"))
    return out


def finish(nursery: Nursery, line: list[object], said: Path, processes: int = 1) -> None:
    assert not any(nursery.run(line, said, processes)), said.read_text()


def logged(run: Path) -> list[dict]:
    lines = (run / "log.jsonl").read_text().splitlines() if (run / "log.jsonl").exists() else []
    reports = [json.loads(line) for line in lines if line.endswith("}")]
    timing = ("seconds", "seconds_per_step", "images_per_second", "memory_mib")
    return [{name: fact for name, fact in facts.items() if name not in timing} for facts in reports]


def newest(run: Path) -> int:
    return max((facts["step"] for facts in logged(run)), default=0)


def wait_until(true: Callable[[], bool], pids: list[int], seconds: float = 60) -> None:
    """Until it is so, or a process is no more."""
    end = time.monotonic() + seconds
    while not true() and all(_alive(pid) for pid in pids):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.0005)


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def being_saved(run: Path) -> list[Path]:
    try:
        return [path for folder in run.glob(".step-*.tmp") for path in folder.rglob("*")]
    except FileNotFoundError:  # got its name while it was looked at
        return []


def kill_at_a_random_moment(nursery: Nursery, pids: list[int], run: Path, at: int, draw: random.Random) -> bool:
    """After step `at`, in the middle of a save or anywhere; whether a save was cut off."""
    wait_until(lambda: newest(run) >= at, pids)
    if draw.random() < 0.5:
        files = draw.randrange(1, 12)
        wait_until(lambda: len(being_saved(run)) >= files, pids)
    else:
        time.sleep(draw.uniform(0, 0.3))
    nursery.kill(pids)
    nursery.wait(pids)
    return bool(being_saved(run))


def assert_same(run: Path, other: Path) -> None:
    """All weights, averages and optimisers of the last step, and all that was logged on the way."""
    paths = sorted(path.relative_to(other) for path in other.glob(f"step-{STEPS:06d}/**/*.safetensors"))
    assert any("state" in path.parts for path in paths)
    for path in paths:
        ours, theirs = load_tensors(run / path), load_tensors(other / path)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), path
    assert logged(run) == logged(other)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("stage", ["vae", "unet"])
def test_a_run_killed_ten_times_ends_with_the_weights_of_one_never_killed(
    nursery: Nursery, small_vae: Path, tmp_path: Path, stage: str, processes: int
) -> None:
    whole, run, said = tmp_path / "whole", tmp_path / "run", tmp_path / "said.txt"
    finish(nursery, words(stage, small_vae, whole), said, processes)
    draw = random.Random(f"{stage} {processes}")
    moments = sorted(draw.sample(range(STEPS - 4), KILLS))
    cut = 0
    for at in moments:
        pids = nursery.start([*words(stage, small_vae, run), "--resume"], said, processes)
        cut += kill_at_a_random_moment(nursery, pids, run, at, draw)
        assert not (run / "model_index.json").exists(), "the run had ended before it was killed"
    assert cut >= 2, "hardly a save was cut off"
    finish(nursery, [*words(stage, small_vae, run), "--resume"], said, processes)
    assert_same(run, whole)
    assert "not exactly" not in said.read_text()
    assert not being_saved(run)
