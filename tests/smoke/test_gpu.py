"""What only a CUDA device can show; skipped, with that reason, where there is none."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import SMALL, Command, overrides

from ldm.training.logging.log import read_log

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; run with -m gpu where there is one"),
]


DIVIDED = [("fsdp2", "no"), ("fsdp2", "bf16"), ("fsdp2", "fp16"), ("zero2", "no"), ("zero3", "no"), ("zero3", "bf16")]


def test_an_image_generated_on_the_gpu_equals_that_of_the_cpu(
    interpreter: Command, tiny_pipeline: Path, tmp_path: Path
) -> None:
    images = []
    for device in ("cpu", "cuda"):
        out = tmp_path / f"{device}.png"
        interpreter("generate", "a dog", "--model", tiny_pipeline, "--device", device, "--steps", 5, "--out", out)
        images.append(np.asarray(Image.open(out)).astype(int))
    assert np.abs(images[0] - images[1]).max() <= 2


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_both_stages_train_on_the_gpu(interpreter: Command, tmp_path: Path, precision: str) -> None:
    playing = ("weight=0.5", "start_step=2", "discriminator_channels=8")
    both = [word for option in playing for word in ("--set", f"loss.adversarial.{option}")]
    for stage, part, extra in (("vae", "autoencoder", ()), ("unet", "unet", ("--vae", tmp_path / "vae"))):
        options = ("--set", f"training.{part}.mixed_precision={precision}", "--max-steps", 4, *SMALL, *both)
        words = [f"train-{stage}", "tiny", "--data", "scenes", *extra, "--out", tmp_path / stage, *options]
        assert f"on cuda, mixed precision {precision}" in interpreter(*words).stderr
        # Moments, averages and, in fp16, the scaler are taken up again.
        words[words.index("--max-steps") + 1] = 6
        assert "steps 5 to 6" in interpreter(*words, "--resume").stderr


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize(("kind", "precision"), DIVIDED, ids="-".join)
def test_weights_divided_by_accelerate_train_as_whole_ones_do(
    interpreter: Command,
    whole: list[float],
    tiny_vae: Path,
    tmp_path: Path,
    kind: str,
    precision: str,
    tolerance: float,
) -> None:
    if kind.startswith("zero"):
        pytest.importorskip("deepspeed", reason="needs DeepSpeed: pip install deepspeed")
    out = tmp_path / kind
    assert launched(kind, tiny_vae, out, precision) == pytest.approx(whole, rel=1e-3 if precision == "no" else 2e-2)
    # What was written by two goes on with whole weights, on one GPU.
    done = interpreter(*unet_words(tiny_vae, 12, precision), "--out", out, "--resume")
    assert "processes 1, was 2 (sums are rounded otherwise)" in done.stderr


@pytest.fixture(scope="module")
def whole(tiny_vae: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of two GPUs that have all weights each, in full precision."""
    return launched("ddp", tiny_vae, tmp_path_factory.mktemp("whole") / "ddp", "no")


def launched(kind: str, vae: Path, out: Path, precision: str) -> list[float]:
    """The losses of eight steps on two GPUs, as a configuration of accelerate's divides the work."""
    file = Path(__file__).parents[2] / "configs" / "accelerate" / f"{kind}.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "2"]
    words = [*launch, "--config_file", file, "-m", "ldm", *unet_words(vae, 8, precision), "--out", out]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [facts["loss"] for facts in read_log(out / "log.jsonl") if "loss" in facts]


def unet_words(vae: Path, last: int, precision: str) -> list[object]:
    options = ("train-unet", "tiny", "--data", "scenes", "--vae", vae, "--max-steps", last, "--save-every", 4, *SMALL)
    stage = ("log_every=1", "decay=constant", f"mixed_precision={precision}")
    return [*options, *overrides(*(f"training.unet.{option}" for option in stage))]
