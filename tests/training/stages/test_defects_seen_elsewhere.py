"""Defects that trainers of first stages are known for, a test each, named after the defect.

Beside these, `tests/models/test_perceptual.py` sees the gradient of the perceptual loss at every weight of an
autoencoder, `test_stages.py` sees the generator's loss leave none in the discriminator, and `test_kills.py` kills
and resumes runs of one and of two processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import double_precision
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from double_precision import CASES, SAVED, STEPS
from loss_terms import loss_terms, losses
from tiny_stages import PLAYING, Colours, autoencoder_stage, micro_batches, settings
from torch import Tensor
from torchvision import models

from ldm.data.images import to_tensor
from ldm.models.perceptual import backbone_path
from ldm.training import latents, loop
from ldm.training.loop import start_accelerator
from ldm.training.losses.adversarial import adaptive_weight
from ldm.training.runs.run import Run
from ldm.training.runs.saving import Saver
from ldm.training.stages.autoencoder import AutoencoderStage

LAUNCHERS = {"one": (), "two": ("-m", "torch.distributed.run", "--nproc_per_node", "2")}


@pytest.fixture(scope="module")
def courses(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What `double_precision.py` came to: in one process, and in the first and the second of two."""
    script = Path(double_precision.__file__)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    found = []
    for name, launcher in LAUNCHERS.items():
        out = tmp_path_factory.mktemp(name)
        command = [sys.executable, *launcher, str(script), str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        found += [torch.load(path) for path in sorted(out.glob("*.pt"))]
    return found


def test_perceptual_loss_without_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = backbone_path("squeeze")
    path.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(models.squeezenet1_1(weights=None).state_dict(), path)  # the pretrained one cannot be had everywhere
    terms = loss_terms(reconstruction={"kind": "l2"}, perceptual={"weight": 1, "net": "squeeze"})
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    made = images.flip(0).requires_grad_()
    found = losses(terms, images, made)
    whole, reconstruction = (
        torch.autograd.grad(found[n], made, retain_graph=True)[0] for n in ("nll", "reconstruction")
    )
    assert (whole - reconstruction).abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_gradients_not_synchronised_because_the_unwrapped_module_was_called(
    courses: list[dict[str, Any]], case: str
) -> None:
    """Two processes have the losses of one with the same global batch, both optimisers', and one another's weights."""
    one, first, second = (course[case] for course in courses)
    assert len(one["losses"]) == STEPS
    assert first["losses"] == second["losses"]
    assert {"nll", "generator", "adversarial_weight", "discriminator"} <= one["losses"][-1].keys()
    assert any("r1" in losses for losses in one["losses"]) == (case == "spectral")
    for step, (together, alone) in enumerate(zip(first["losses"], one["losses"], strict=True), 1):
        assert together == pytest.approx(alone, rel=1e-6), f"step {step}"
    assert_same(first["state"], second["state"])


@pytest.fixture
def half_precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[Accelerator]:
    monkeypatch.setattr(loop, "computes_bfloat16", lambda device: True)  # or slowly
    AcceleratorState._reset_state(True)
    yield start_accelerator(settings("training.autoencoder.mixed_precision=bf16").training.autoencoder, 0)
    AcceleratorState._reset_state(True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about autocast on the CPU")
def test_weights_cast_to_half_before_training(half_precision: Accelerator) -> None:
    """Networks compute in half precision; weights, moments and averages are float32, and keep the smallest steps."""
    options = ("training.autoencoder.learning_rate=1e-6", "training.autoencoder.warmup_steps=0")
    stage = AutoencoderStage.build(settings(*PLAYING, *options), Colours(), half_precision)
    seen: list[torch.dtype] = []
    conv = stage.networks["reconstruction"].autoencoder.decoder.conv_out
    conv.register_forward_hook(lambda module, given, made: seen.append(made.dtype))
    before = [weight.detach().clone() for weight in stage.networks["reconstruction"].parameters()]
    stage.train_step(micro_batches(2), 2)
    assert seen == [torch.bfloat16]
    assert {tensor.dtype for tensor in floats(whole_state(stage))} == {torch.float32}
    after = stage.networks["reconstruction"].parameters()
    steps = [(a - b).abs().max().item() for a, b in zip(after, before, strict=True) if a.requires_grad]
    assert 0 < max(steps) < 1e-5  # bfloat16 would keep no step smaller than 1/256 of a weight


@pytest.mark.parametrize("norm", ["batch", "spectral"])
def test_resume_that_loads_nothing(tmp_path: Path, norm: str) -> None:
    options = (*PLAYING, f"loss.adversarial.discriminator_norm={norm}")
    stage, other = autoencoder_stage(*options), other_stage(*options)
    for step in (1, 2, 3):
        stage.train_step(micro_batches(step), step)
    with pytest.raises(AssertionError):
        assert_same(whole_state(other), whole_state(stage))
    Saver(stage, Run(tmp_path, resume=True), settings(*options), Colours()).save(3, {})
    assert Saver(other, Run(tmp_path, resume=True), settings(*options), Colours()).resume() == (3, None)
    assert_same(whole_state(other), whole_state(stage))
    assert other.train_step(micro_batches(4), 4).losses == stage.train_step(micro_batches(4), 4).losses


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_state_saved_by_one_process_only(courses: list[dict[str, Any]], case: str) -> None:
    """Two processes that were resumed go on, each, exactly as those that were not interrupted."""
    for course in courses:
        assert course[case]["resumed_losses"][SAVED:] == course[case]["losses"][SAVED:]
        assert_same(course[case]["resumed_state"], course[case]["state"])


def test_generator_and_discriminator_on_alternating_batches() -> None:
    stage = autoencoder_stage(*PLAYING)
    seen: list[Tensor] = []
    stage.networks["discriminator"].register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    for step in (2, 3):
        [batch] = micro_batches(step)
        assert stage.train_step([batch], step).losses.keys() >= {"generator", "discriminator"}
        generated, both = seen
        assert torch.equal(both, torch.cat([batch.images, generated]))
        seen.clear()


HALF = {
    "huge": torch.full((1000,), 6e4, dtype=torch.float16),  # its square is not in float16
    "tiny": torch.full((1000,), 1e-4, dtype=torch.float16),  # nor is this one's
    "zero": torch.zeros(1000, dtype=torch.float16),
    "infinite": torch.full((1000,), torch.inf, dtype=torch.float16),
    "nan": torch.full((1000,), torch.nan, dtype=torch.float16),
    "beyond": torch.full((1000,), 3e38),  # its norm is not in float32
}


@pytest.mark.parametrize("generator", HALF)
@pytest.mark.parametrize("nll", HALF)
def test_adaptive_weight_nan_under_fp16(nll: str, generator: str) -> None:
    """It is finite, between 0 and 1e4, and computed in float32."""
    found = adaptive_weight(HALF[nll], HALF[generator])
    assert found.dtype == torch.float32
    assert 0 <= found.item() <= 1e4
    if {nll, generator} <= {"huge", "tiny", "zero"}:
        norms = [HALF[name].double().norm() for name in (nll, generator)]
        assert found.item() == pytest.approx(min((norms[0] / (norms[1] + 1e-4)).item(), 1e4), rel=1e-4)


def test_adaptive_weight_zero_under_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients that float16 does not hold until the scaler makes them larger have their part in it."""

    class Scaler:
        def scale(self, values: Tensor) -> Tensor:
            return 2.0**16 * values

    stage = autoencoder_stage(*PLAYING)
    monkeypatch.setattr(stage.accelerator, "scaler", Scaler())
    weight = stage.networks["reconstruction"].autoencoder.last_layer
    seen = weight.half().float().sum()  # so that gradients pass through float16
    norm = weight.numel() ** 0.5
    found = stage.terms["adversarial"]._adaptive_weight(1e-8 * seen, 1e-3 * seen, 1e4)
    assert found.item() == pytest.approx(1e-8 * norm / (1e-3 * norm + 1e-4), rel=1e-2)


def test_scale_factor_from_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "BATCH", 4)
    stage, source = autoencoder_stage("training.autoencoder.statistics_images=12"), Colours()
    images = torch.cat([to_tensor(source.image(index)[None]) for index in range(12)])
    with torch.no_grad():
        posterior = stage.average.encode(images)
    expected, first = (deviation(posterior.mean[:n], posterior.variance[:n]) for n in (12, 4))
    assert abs(first / expected - 1) > 0.01  # the first batch would give something else
    stage.finish(source)
    assert 1 / stage.average.config.scaling_factor == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_scale_factor_from_one_process(courses: list[dict[str, Any]], case: str) -> None:
    one, first, second = (course[case]["scaling_factor"] for course in courses)
    assert first == second == pytest.approx(one, rel=1e-5)


def deviation(mean: Tensor, variance: Tensor) -> float:
    """Of samples of normal distributions, all together."""
    return (variance.mean() + mean.var(correction=0)).sqrt().item()


def other_stage(*options: str) -> AutoencoderStage:
    """`autoencoder_stage` with other weights."""
    torch.manual_seed(1)
    return AutoencoderStage.build(settings(*options), Colours(), Accelerator(cpu=True))


def whole_state(stage: AutoencoderStage) -> dict[str, Any]:
    with stage.averaged():
        return {name: part for name, part in stage.state().items() if name in ("networks", "optimizers", "ema")}


def floats(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, dict):
        for part in tree.values():
            yield from floats(part)
    elif isinstance(tree, Tensor) and tree.is_floating_point():
        yield tree


def assert_same(ours: Any, theirs: Any) -> None:
    """Trees of tensors and plain values, bit by bit."""
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert_same(ours[name], theirs[name])
    elif isinstance(ours, list):
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(ours, Tensor):
        assert torch.equal(ours, theirs)
    else:
        assert ours == theirs
