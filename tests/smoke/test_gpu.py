"""What only a CUDA device can show; skipped, with that reason, where there is none."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import SMALL, Command

from ldm.training.log import read_log

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; run with -m gpu where there is one"),
]


def test_a_picture_drawn_on_the_gpu_is_that_of_the_cpu(ldm: Command, tiny_pipeline: Path, tmp_path: Path) -> None:
    pictures = []
    for device in ("cpu", "cuda"):
        out = tmp_path / f"{device}.png"
        ldm("generate", "a dog", "--model", tiny_pipeline, "--device", device, "--steps", 5, "--out", out)
        pictures.append(np.asarray(Image.open(out)).astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 2


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_both_stages_train_on_the_gpu(ldm: Command, tmp_path: Path, precision: str) -> None:
    playing = ("weight=0.5", "start_step=2", "discriminator_channels=8")
    both = [word for option in playing for word in ("--set", f"loss.adversarial.{option}")]
    for stage, part, extra in (("vae", "autoencoder", ()), ("unet", "unet", ("--vae", tmp_path / "vae"))):
        options = ("--set", f"training.{part}.mixed_precision={precision}", "--max-steps", 4, *SMALL, *both)
        done = ldm(f"train-{stage}", "tiny", "--data", "scenes", *extra, "--out", tmp_path / stage, *options)
        assert "on cuda" in done.stderr


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_weights_divided_by_accelerate_train_as_whole_ones_do(ldm: Command, tiny_vae: Path, tmp_path: Path) -> None:
    options = ["train-unet", "tiny", "--data", "scenes", "--vae", tiny_vae, "--max-steps", 8, "--save-every", 4, *SMALL]
    options += ["--set", "training.unet.log_every=1"]
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "2"]
    found = {}
    for kind in ("ddp", "fsdp2"):
        file = Path(__file__).parents[2] / "configs" / "accelerate" / f"{kind}.yaml"
        words = [*launch, "--config_file", file, "-m", "ldm", *options, "--out", tmp_path / kind]
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found[kind] = [facts["loss"] for facts in read_log(tmp_path / kind / "log.jsonl") if "loss" in facts]
    assert found["fsdp2"] == pytest.approx(found["ddp"], rel=1e-3)
    # What was written sharded goes on with whole weights, on one GPU.
    done = ldm(*options[:6], "--max-steps", 12, *options[8:], "--out", tmp_path / "fsdp2", "--resume")
    assert "processes 1, was 2 (sums are rounded otherwise)" in done.stderr
