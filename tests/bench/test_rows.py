"""Workloads with tiny networks, and their table."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from ldm import config
from ldm.bench import rows
from ldm.bench.decoding import decoding
from ldm.bench.growth import Axis, Size, draw_growth, measure_growth
from ldm.bench.machine import Peaks, measure_peaks
from ldm.bench.rows import GPU_ROWS, ROWS, chosen
from ldm.bench.runner import Row, measure
from ldm.bench.sampling import image, sampling, step
from ldm.bench.training import train_cached, train_step
from ldm.bench.workload import Workload
from ldm.devices import computes_bfloat16
from ldm.errors import UserError

CPU, FP32, BF16 = torch.device("cpu"), torch.float32, torch.bfloat16
RATES = {FP32: 1e15, BF16: 1e15}
NAMES = {
    "small-sampling-fp32",
    "small-sampling-bf16",
    "sd15-step-fp32",
    "sd15-step-bf16",
    "decode-256-fp32",
    "decode-256-bf16",
    "decode-512-fp32",
    "decode-512-bf16",
    "train-step",
    "train-cached",
    "cold-start",
    "draft",
}


@pytest.fixture(autouse=True)
def reset_accelerator() -> None:
    """Forget the accelerator of earlier tests, since a process has one accelerator of one precision."""
    AcceleratorState._reset_state(True)


def measured(workload: Workload) -> Row:
    return measure("x", workload, 1, Peaks(RATES, RATES), CPU)


@pytest.fixture
def toy(tmp_path: Path) -> str:
    """Write a configuration of two narrow levels, and an autoencoder with one downsampling."""
    changes = ["unet.block_out_channels=[32, 64]", "unet.attention_layers=[1, 0]", "unet.layers_per_block=1"]
    changes += ["unet.cross_attention_dim=32", "text.hidden_size=32", "text.num_hidden_layers=1"]
    changes += ["text.num_attention_heads=4", "training.unet.batch_size=2", "training.unet.mixed_precision=no"]
    changes += ["autoencoder.block_out_channels=[32, 32]", "data.size=16", "autoencoder.scaling_factor=0.5"]
    path = tmp_path / "toy.yaml"
    path.write_text(config.dump(config.load("bench/small", changes)))
    return str(path)


MAKERS = {
    "sampling": lambda toy, dtype, against: sampling(toy, dtype, against, steps=3),
    "step": step,
    "image": lambda toy, dtype, against: image(toy, dtype, against, steps=2),
    "decoding": lambda toy, dtype, against: decoding(toy, 32, dtype, against),
}


@pytest.mark.slow
@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_ours_and_diffusers_do_the_same_work_on_the_same_weights(maker: Callable[..., Workload], toy: str) -> None:
    fp32, bf16 = measured(maker(toy, FP32, True)), measured(maker(toy, BF16, True))
    assert fp32.errors["ours"] < 1e-5
    assert fp32.errors["tuned"] < 1e-5
    assert fp32.errors["theirs"] == 0
    assert 1e-4 < bf16.errors["ours"] < 0.1
    assert bf16.seconds.keys() == fp32.seconds.keys() | {"theirs_bf16"}
    assert fp32.flops == bf16.flops > 1e6


@pytest.mark.slow
@pytest.mark.parametrize("maker", [train_step, train_cached])
def test_a_training_step_has_the_loss_of_diffusers(maker: Callable[..., Workload], toy: str) -> None:
    workload = maker(toy, True)
    row = measured(workload)
    workload.close()
    assert row.errors["ours"] < 1e-4
    assert row.seconds.keys() == {"ours", "theirs", "tuned"}
    assert row.images == 2
    assert row.as_dict()["images_per_second"] == pytest.approx(2 / row.seconds["ours"][0])


@pytest.mark.slow
@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_without_diffusers_ours_is_compared_with_its_plain_path(maker: Callable[..., Workload], toy: str) -> None:
    fp32, bf16 = measured(maker(toy, FP32, False)), measured(maker(toy, BF16, False))
    assert fp32.seconds.keys() == bf16.seconds.keys() == {"ours"}
    assert fp32.errors["ours"] < 1e-5
    assert 1e-4 < bf16.errors["ours"] < 0.1


def test_the_table_has_the_names_that_scripts_rely_on() -> None:
    assert ROWS.keys() == NAMES
    assert chosen([]).keys() == {name for name in NAMES if computes_bfloat16(CPU) or not name.endswith("bf16")}
    assert list(chosen(["decode-512-fp32", "cold-start"])) == ["decode-512-fp32", "cold-start"]


def test_an_unknown_row_raises_an_error_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="unknown row; did you mean small-sampling-fp32"):
        chosen(["small-sampling"])


def test_rows_in_bfloat16_need_a_processor_with_instructions_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "computes_bfloat16", lambda device: False)
    assert chosen([]).keys() == {name for name in NAMES if not name.endswith("bf16")}
    with pytest.raises(UserError, match="--only decode-256-bf16: this processor has no instructions for bfloat16"):
        chosen(["decode-256-bf16"])
    monkeypatch.setattr(rows, "computes_bfloat16", lambda device: True)
    assert "decode-256-bf16" in chosen([])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_rows_of_real_sizes_need_a_gpu() -> None:
    with pytest.raises(UserError, match="sd15-image-bf16: this row needs a CUDA device"):
        chosen(["sd15-image-bf16"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; run with -m gpu where there is one")
@pytest.mark.parametrize("name", GPU_ROWS)
def test_rows_of_real_sizes_come_near_the_gpus_peak(name: str) -> None:
    device = torch.device("cuda")
    workload = GPU_ROWS[name](False)
    row = measure(name, workload, 3, measure_peaks(device), device)
    workload.close()
    assert 0.05 < (row.share_of_peak or 0) < 1
    assert (row.memory["ours"] or 0) > 2**20


def test_growth_is_measured_and_plotted_along_every_axis(toy: str, tmp_path: Path) -> None:
    axes = (
        Axis("steps", (Size(1), Size(8)), lambda size: size.steps),
        Axis("images", (Size(1, 1, 8), Size(1, 16, 8)), lambda size: size.images),
    )
    curves = measure_growth(toy, CPU, 1, axes)
    assert [[place for place, _ in found[FP32]] for found in curves] == [[1, 8], [1, 16]]
    for found in curves:
        for (_, few), (_, many) in found.values():
            assert 0 < few < many
    draw_growth(curves, tmp_path / "growth.png", axes)
    image = Image.open(tmp_path / "growth.png")
    assert image.width > 2 * image.height
    assert len(image.getcolors(2**20)) > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NAMES - {"sd15-step-bf16", "decode-512-fp32", "decode-512-bf16"}))
def test_rows_run_at_their_real_size(name: str) -> None:
    """Without those that differ from others only in dtype or size, and would take minutes."""
    if name not in chosen([]):
        pytest.skip("needs a processor with instructions for bfloat16, such as avx512_bf16")
    workload = ROWS[name](not name.startswith("sd15"))  # whose copies for diffusers take 10 GB
    output = workload.ours()
    workload.close()
    assert output is not None
    assert output.isfinite().all()
    assert output.abs().sum() > 0
