"""What only a CUDA device can show; skipped, with that reason, where there is none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import SMALL, Command

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
    for stage, part, extra in (("vae", "autoencoder", ()), ("unet", "unet", ("--vae", tmp_path / "vae"))):
        options = ("--set", f"training.{part}.mixed_precision={precision}", "--max-steps", 4, *SMALL)
        done = ldm(f"train-{stage}", "tiny", "--data", "scenes", *extra, "--out", tmp_path / stage, *options)
        assert "on cuda" in done.stderr
