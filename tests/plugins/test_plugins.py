"""A third-party package adds a component of each kind and is used through the real command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

HERE = Path(__file__).parent
CONFIG = HERE / "config.yaml"


def ldm(*arguments: object, plugin: bool = True) -> subprocess.CompletedProcess[str]:
    paths = [str(HERE)] * plugin + [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ldm", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def done(*arguments: object) -> str:
    found = ldm(*arguments)
    assert found.returncode == 0, found.stderr
    return found.stdout + found.stderr


def reports(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("plugins") / "vae"
    done("train-vae", CONFIG, "--data", "stripes", "--out", run)
    return run


@pytest.fixture(scope="module")
def model(vae: Path) -> Path:
    run = vae.parent / "model"
    done("train-unet", CONFIG, "--data", "stripes", "--vae", vae, "--out", run, "--save-every", 3)
    return run


def test_the_loss_term_and_the_data_source_train_an_autoencoder(vae: Path) -> None:
    found = reports(vae)
    assert len(found) == 4
    assert all(line["edges"] > 0 for line in found)
    assert found[-1]["loss"] < found[0]["loss"]


@pytest.mark.slow
def test_the_weight_of_the_loss_term_is_an_option(vae: Path, tmp_path: Path) -> None:
    options = ("--set", "loss.edges.weight=0", "--max-steps", 1)
    done("train-vae", CONFIG, "--data", "stripes", "--out", tmp_path, *options)
    [line] = reports(tmp_path)
    assert "edges" not in line
    assert line["loss"] < reports(vae)[0]["loss"]


def test_the_text_encoder_and_the_denoiser_train_and_are_saved(model: Path) -> None:
    assert len(reports(model)) == 6
    index = json.loads((model / "model_index.json").read_text())
    assert index["_class_name"] == "LatentDiffusionPipeline"
    assert index["text_encoder"] == ["ldm", "BagOfWordsEncoder"]
    assert index["unet"] == ["ldm", "ConvNet"]
    assert json.loads((model / "text_encoder" / "config.json").read_text())["scale"] == 2.0


@pytest.mark.slow
def test_a_run_is_resumed_exactly(model: Path, vae: Path, tmp_path: Path) -> None:
    options = ("--data", "stripes", "--vae", vae, "--out", tmp_path, "--save-every", 3)
    done("train-unet", CONFIG, *options, "--max-steps", 3)
    done("train-unet", CONFIG, *options, "--resume")
    losses = [[line["loss"] for line in reports(run)] for run in (model, tmp_path)]
    assert losses[0] == losses[1]


def test_the_model_generates_with_the_plugins_sampler(model: Path, tmp_path: Path) -> None:
    for name, prompt in (("red", "red stripes"), ("blue", "blue stripes")):
        out = tmp_path / f"{name}.png"
        done("generate", prompt, "--model", model, "--sampler", "plain-euler", "--steps", 3, "--out", out)
    first, second = (Image.open(tmp_path / f"{name}.png") for name in ("red", "blue"))
    assert first.size == (32, 32)
    assert first.tobytes() != second.tobytes()
    assert json.loads(first.text["ldm"])["sampler"] == "plain-euler"  # type: ignore[attr-defined]


def test_without_the_plugin_its_names_are_errors_of_one_line(model: Path, tmp_path: Path) -> None:
    found = ldm("generate", "red stripes", "--model", model, "--out", tmp_path / "a.png", plugin=False)
    assert found.returncode == 2
    assert "BagOfWordsEncoder" in found.stderr or "ConvNet" in found.stderr
    assert found.stderr.count("\n") == 1
