"""User errors print one line on standard error, without a traceback, and exit with status 2."""

import os
import shutil
from pathlib import Path

import pytest
from running import Command


def expect_user_error(done: object, *words: str) -> None:
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("ldm: ")
    for word in words:
        assert word in lines[0]


def test_a_missing_configuration(ldm: Command, tmp_path: Path) -> None:
    done = ldm("train-vae", tmp_path / "none.yaml", "--data", "scenes", check=False)
    expect_user_error(done, "none.yaml", "tiny")


def test_an_unknown_option_in_a_configuration(here: Command, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("loss: {perceptual: {wieght: 0}}\n")
    expect_user_error(here("train-vae", path, "--data", "scenes", check=False), "loss.perceptual.wieght", "'weight'")


def test_missing_data(ldm: Command, tmp_path: Path) -> None:
    done = ldm("train-vae", "tiny", "--data", tmp_path / "nowhere", "--out", tmp_path / "run", check=False)
    expect_user_error(done, "nowhere", "scenes")


def test_a_missing_autoencoder(here: Command, tmp_path: Path) -> None:
    options = ("--data", "scenes", "--out", tmp_path / "run", "--set", "data.scenes.num=16")
    expect_user_error(here("train-unet", "tiny", *options, check=False), "--vae")
    expect_user_error(here("train-unet", "tiny", "--vae", tmp_path / "none", *options, check=False), "none")


def test_a_folder_that_holds_a_run(ldm: Command, tiny_vae: Path) -> None:
    done = ldm("train-vae", "tiny", "--data", "scenes", "--out", tiny_vae, check=False)
    expect_user_error(done, str(tiny_vae), "--resume")


def test_a_missing_lpips_backbone(ldm: Command, tmp_path: Path) -> None:
    # A proxy that nobody listens at stands for a machine without a network.
    alone = {**os.environ, "TORCH_HOME": str(tmp_path), "https_proxy": "http://localhost:9"}
    options = ("--data", "scenes", "--set", "loss.perceptual.weight=1", "--set", "data.scenes.num=16")
    done = ldm("train-vae", "tiny", "--out", tmp_path / "run", *options, check=False, env=alone)
    expect_user_error(done, "vgg16-397923af.pth", str(tmp_path), "loss.perceptual.weight=0")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate", "a dog", "--stpes", "3"], "--stpes"),
        (["generate", "a dog", "--steps", "many"], "--steps"),
        (["generate", "a dog", "--steps", "0"], "steps"),
        (["generate", "a dog", "--num", "0"], "--num"),
        (["generate", "a dog", "--size", "63x64"], "63"),
        (["generate", "a dog", "--size", "large"], "large"),
        (["generate", "a dog", "--model", "no-such-model"], "no-such-model"),
        (["generate", "a dog", "--model", "README.md"], "README.md is a file"),
        (["generate", "a dog", "--sampler", "dimm"], "dimm"),
        (["generate", "@nowhere.txt"], "nowhere.txt"),
        (["generate"], "PROMPT"),
        (["train-vae", "tiny", "--data", "scenes", "--max-time", "soon"], "soon"),
        (["train-vae", "tiny", "--data", "scenes", "--batch-size", "-1"], "batch_size"),
        (["no-such-command"], "no-such-command"),
    ],
)
def test_wrong_words(here: Command, tiny_pipeline: Path, words: list[str], said: str) -> None:
    model = ["--model", tiny_pipeline] if words[0] == "generate" and "--model" not in words else []
    expect_user_error(here(*words, *model, check=False), said)


def test_an_empty_prompt_file(here: Command, tiny_pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n\n")
    done = here("generate", f"@{tmp_path / 'prompts.txt'}", "--model", tiny_pipeline, check=False)
    expect_user_error(done, "prompts.txt")


def test_a_truncated_checkpoint(ldm: Command, tiny_pipeline: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_pipeline, broken, ignore=shutil.ignore_patterns("step-*"))
    [weights] = (broken / "unet").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    done = ldm("generate", "a dog", "--model", broken, "--out", tmp_path / "dog.png", check=False)
    expect_user_error(done, weights.name)
    assert not (tmp_path / "dog.png").exists()


def test_a_place_that_cannot_be_written_to(ldm: Command, tiny_pipeline: Path, tmp_path: Path) -> None:
    # Below a file no folder can be made, not even by root, who may write anywhere else.
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "dog.png"
    expect_user_error(ldm("generate", "a dog", "--model", tiny_pipeline, "--out", out, check=False), str(out.parent))
    run = tmp_path / "file" / "run"
    expect_user_error(ldm("train-vae", "tiny", "--data", "scenes", "--out", run, check=False), str(run))
