"""Models of classes, of nothing and on pixels through the real command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import Command, here, losses

from ldm.checkpoint.diffusers.pipeline import load_pipeline
from ldm.errors import UserError

FEW = ("--batch-size", 8, "--max-steps", 4, "--set", "training.unet.log_every=1", "--set", "data.scenes.num=64")
CLASSES = ("text=null", "classes={num_classes: 21, hidden_size: 64}", "training.unet.sample_prompts=[]")
PIXELS = (
    "data.size=16",
    "data.scenes.num=64",
    "data.scenes.concepts=12",
    "training.unet.sample_images=0",
    "training.unet.mixed_precision=no",  # tests in one process share an accelerator
)


def overrides(*options: str) -> list[str]:
    return [word for option in options for word in ("--set", option)]


@pytest.mark.slow
def test_classes_from_a_cache_in_one_process_and_two(
    ldm: Command, tiny_vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = overrides(*CLASSES)
    here("cache", "scenes", "--model", tiny_vae, "--config", "tiny", *classes, *FEW[4:], "--out", tmp_path / "cache")
    train = ("train-unet", "tiny", "--vae", tiny_vae, *classes, *FEW, "--data")
    here(*train, tmp_path / "cache", "--out", tmp_path / "one")
    ldm(*train, tmp_path / "cache", "--out", tmp_path / "two", processes=2)
    here(*train, "scenes", "--out", tmp_path / "scenes")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert losses(tmp_path / "scenes") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    names = load_pipeline(tmp_path / "one").class_names
    assert names[0] == "dog"
    here("cache", "scenes", "--model", tiny_vae, "--config", "tiny", *FEW[4:], "--out", tmp_path / "bare")
    with pytest.raises(UserError, match=r"is a cache without classes"):
        here(*train, tmp_path / "bare", "--out", tmp_path / "x")
    options = ("generate", "--model", tmp_path / "one", "--steps", 2, "--out")
    here(*options, tmp_path / "a.png", "--class", "dog")
    here(*options, tmp_path / "b.png", "--class", 0, "--negative-class", 20, "--cfg", 3)
    assert np.array_equal(Image.open(tmp_path / "a.png"), Image.open(tmp_path / "b.png"))
    here("evaluate", "--model", tmp_path / "one", "--metrics", "fid,psnr", "--features", "efficientnet-lite0",
         "--samples", 4, "--steps", 2, "--concepts", 20, "--out", tmp_path / "report.json")  # fmt: skip
    assert json.loads((tmp_path / "report.json").read_text())["results"]["fid"] > 0
    capsys.readouterr()
    here("info", tmp_path / "one")
    assert "classes" in capsys.readouterr().out


@pytest.mark.slow
def test_pixels_need_no_autoencoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ("train-unet", "pixels", "--data", "scenes", *overrides(*PIXELS), "--batch-size", 8, "--max-steps", 2)
    here(*train, "--out", tmp_path / "run")
    index = json.loads((tmp_path / "run" / "model_index.json").read_text())
    assert index["_class_name"] == "DDPMPipeline"
    here("generate", "--num", 4, "--model", tmp_path / "run", "--steps", 2, "--out", tmp_path / "images")
    assert [Image.open(path).size for path in (tmp_path / "images").iterdir()] == [(16, 16)] * 4
    capsys.readouterr()
    here(*train, "--out", tmp_path / "x", "--dry-run")
    assert "tried for" in capsys.readouterr().out
    here("info", tmp_path / "run")
    assert "4,437,699" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--vae .* is not used with autoencoder.kind identity"):
        here(*train, "--out", tmp_path / "y", "--vae", tmp_path / "run")
    with pytest.raises(UserError, match=r"identity has no weights to train"):
        here("train-vae", "pixels", "--data", "scenes", "--out", tmp_path / "z")
