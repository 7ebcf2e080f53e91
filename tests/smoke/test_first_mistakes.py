"""Mistakes of the first hour: each error says what to write instead."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from PIL import Image
from running import Command

import ldm
from ldm import config
from ldm.bench.rows import GPU_ROWS, ROWS, chosen
from ldm.config.section import nearest
from ldm.config.training import UNetStageConfig
from ldm.data.sources import open_source
from ldm.errors import UserError
from ldm.models.perceptual import backbone_state
from ldm.training.logging.log import Log

PART = "training.autoencoder"


def test_the_version_names_torch_and_python(here: Command) -> None:
    python = ".".join(map(str, sys.version_info[:3]))
    said = here("--version").stdout
    assert said == f"ldm {ldm.__version__} (torch {metadata.version('torch')}, python {python})\n"


def test_the_version_needs_no_import_of_torch() -> None:
    run = "from ldm.cli.main import app; app(['--version'], standalone_mode=False)"
    code = f"import sys; {run}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("name", ["", "list", "small-samplin-fp32"])
def test_an_unknown_row_of_the_benchmark_is_answered_by_all_rows(name: str) -> None:
    with pytest.raises(UserError, match="unknown row") as error:
        chosen([name])
    assert all(row in str(error.value) for row in ROWS | GPU_ROWS)


def test_an_option_without_its_value_is_answered_by_its_help(here: Command) -> None:
    assert "`--only list` lists the rows" in here("bench", "--only", check=False).stderr


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_configurations_have_either_suffix(tmp_path: Path, suffix: str) -> None:
    path, other = (tmp_path / f"my{each}" for each in (suffix, ".yml" if suffix == ".yaml" else ".yaml"))
    path.write_text("data: {size: 32}\n")
    assert config.load(path).data.size == 32
    assert config.load(f"tiny{suffix}") == config.load("tiny")
    for wrong in (other, tmp_path / "my"):
        with pytest.raises(UserError, match=f"did you mean {path}"):
            config.load(wrong)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lr", "learning_rate"),
        ("bs", "batch_size"),
        ("wd", "weight_decay"),
        ("learnig_rate", "learning_rate"),
        ("max_grad_norm", "gradient_clip"),
        ("epochs", "max_steps"),
        ("zzz", None),
    ],
)
def test_names_of_options_elsewhere_lead_to_ours(name: str, meant: str | None) -> None:
    assert nearest(name, list(UNetStageConfig.model_fields)) == meant


@pytest.mark.parametrize(
    ("option", "cure"),
    [
        (f"{PART}.lr=1e-4", f"unknown option '{PART}.lr'; did you mean 'learning_rate'"),
        (
            f"{PART}.betas=0.5,0.9",
            r"not '0.5,0.9': write a list in brackets, on the command line in quotes: '\[0.5,0.9",
        ),
        (f"{PART}.ema_others=0.5", r"not 0.5: write a list in brackets"),
        ("autoencoder.block_out_channels=[8,", r"put quotes around a list with spaces, as in --set 'a.b=\[1, 2\]'"),
    ],
)
def test_a_wrong_option_says_what_to_write(option: str, cure: str) -> None:
    with pytest.raises(UserError, match=cure):
        config.load("tiny", [option])


def test_a_list_that_the_shell_has_cut_needs_quotes(here: Command) -> None:
    words = ("train-vae", "tiny", "--data", "scenes", "--set", "autoencoder.block_out_channels=[8,", "8]")
    assert "put quotes around values with spaces" in here(*words, check=False).stderr


@pytest.mark.parametrize("row", ['["a.png", "a caption"]', '{"file_name": "a.png"', "a.png a caption"])
def test_a_row_that_is_no_object_is_shown_with_its_line_and_an_example(tmp_path: Path, row: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(f"\n{row}\n")
    with pytest.raises(
        UserError, match=r"line 2 of .*metadata.jsonl is .*write one JSON object in each line, such as {"
    ):
        open_source(str(tmp_path), config.load("tiny").data)


def test_missing_weights_of_lpips_name_their_address_and_a_distance_without_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*words: object, **options: object) -> None:
        raise OSError("offline")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    address = "https://download.pytorch.org/models/vgg16-397923af.pth"
    with pytest.raises(UserError, match=f"get {address} and copy it to {tmp_path}.*net=efficientnet-lite0"):
        backbone_state("vgg")


def test_a_line_of_the_log_is_short_and_has_the_learning_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = {f"a_loss_with_a_long_name_{number}": 0.123456789 for number in range(20)}
    rates = {"learning_rate": 1.25e-4, "images_per_second": 123.456, "seconds_per_step": 0.5, "memory_mib": 512.0}
    Log(tmp_path / "log.jsonl", 0, 1_000_000).report({"step": 999, "loss": 0.25, **losses, **rates})
    line = capsys.readouterr().err.strip()
    assert len(line) < 120
    assert line.startswith("step 999/1000000  loss 0.25  learning_rate 0.000125  123.5 images/s  138h45m left  a_loss")
