"""Models that see an image beside the latents through the real command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import here, overrides

from ldm.errors import UserError

FEW = ("data.scenes.num=64", "training.unet.sample_prompts=[]", "training.unet.sample_images=2")
LAYOUT = ("unet.in_channels=8", "spatial={kind: segmentation_map, in_channels: 10, channels: 4, stages: 2}")
LARGER = ("unet.in_channels=7", "spatial={kind: low_resolution}", "data.low_res_noise_std=0.1")


def train(tiny_pipeline: Path, out: Path, *options: str) -> None:
    more = overrides(*FEW, "training.unet.sample_steps=2", *options)
    here("train-unet", "tiny", "--init", tiny_pipeline, "--data", "scenes", "--batch-size", 8, "--max-steps", 2, *more,
         "--out", out)  # fmt: skip
    assert (out / "samples" / "step-000002.png").is_file()


@pytest.mark.slow
def test_generate_reads_a_layout_that_ldm_data_wrote(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_pipeline, tmp_path / "run", *LAYOUT, "data.map_classes=10")
    here("data", "scenes", tmp_path / "data", "--num", 2, "--size", 32, "--concepts", 20, "--maps")
    draw = ("generate", "a dog", "--model", tmp_path / "run", "--steps", 2, "--out", tmp_path / "a.png")
    here(*draw, "--layout", tmp_path / "data" / "000001.map.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (32, 32)
        assert json.loads(image.text["ldm"])["layout"].endswith("000001.map.png")
    for words, message in (
        ((), "generates from a class map"),
        (("--layout", tmp_path / "data" / "000001.png"), "of mode RGB"),
    ):
        with pytest.raises(UserError, match=message):
            here(*draw, *words)
    capsys.readouterr()
    here("info", tmp_path / "run")
    assert "segmentation map encoder" in capsys.readouterr().out


@pytest.mark.slow
def test_a_small_image_is_made_larger(tiny_pipeline: Path, tmp_path: Path) -> None:
    train(tiny_pipeline, tmp_path / "run", *LARGER)
    Image.fromarray(np.full((8, 16, 3), 90, dtype=np.uint8)).save(tmp_path / "small.png")
    draw = ("generate", "a dog", "--model", tmp_path / "run", "--steps", 2, "--out", tmp_path / "large.png")
    here(*draw, "--image", tmp_path / "small.png")
    with Image.open(tmp_path / "large.png") as image:
        assert image.size == (64, 32)
