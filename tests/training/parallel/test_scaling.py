"""What makes training fit and scale changes what it costs, not what it computes."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from grey import Grey, assert_close, settings

from ldm.data.loader import BatchShare, TrainingData
from ldm.errors import UserError
from ldm.models.layers import ResNetBlock
from ldm.storage.store import load_json, load_tree, save_json, save_tree
from ldm.training import cost, loop
from ldm.training.logging import curves
from ldm.training.loop import start_accelerator, train
from ldm.training.runs.run import Run
from ldm.training.runs.stop import Limits
from ldm.training.stages.autoencoder import AutoencoderStage
from ldm.training.stages.stage import StartingPoint
from ldm.training.stages.unet import UNetStage

CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")


def vae_stage(*overrides: str) -> AutoencoderStage:
    torch.manual_seed(0)
    return AutoencoderStage.build(settings(*overrides), Grey(), Accelerator(cpu=True))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stage, folder = vae_stage("training.autoencoder.statistics_images=6"), tmp_path_factory.mktemp("vae")
    stage.finish(Grey())
    stage.save(folder)
    return folder / "vae"


def unet_stage(measured: Path, *overrides: str) -> UNetStage:
    torch.manual_seed(0)
    run = Run(measured.parent / "run", resume=True)
    asked = settings("training.unet.cache_latents=false", *overrides)
    return UNetStage.build(asked, Grey(), Accelerator(cpu=True), run, StartingPoint(vae=str(measured)))


def steps(stage: AutoencoderStage | UNetStage, count: int) -> list[float]:
    data = TrainingData(Grey(), settings().data, BatchShare(4), 0)
    found = []
    for step in range(1, count + 1):
        stage.begin(step)
        found.append(stage.train_step([data[step, 0]], step).losses["loss"].item())
    return found


@pytest.mark.slow
def test_gradient_checkpointing_keeps_losses_and_costs_memory_less(measured: Path) -> None:
    on = ("training.autoencoder.gradient_checkpointing=true", "training.unet.gradient_checkpointing=true")
    dropout = "unet.dropout=0.1"
    assert steps(vae_stage(*on), 3) == pytest.approx(steps(vae_stage(), 3), rel=1e-6)
    assert steps(unet_stage(measured, *on, dropout), 3) == pytest.approx(
        steps(unet_stage(measured, dropout), 3), rel=1e-6
    )
    for stage in ("autoencoder", "unet"):
        plain, checked = cost.step_cost(stage, settings()), cost.step_cost(stage, settings(*on))
        assert checked.activations < 0.6 * plain.activations
        assert plain.flops < checked.flops < 1.5 * plain.flops


def test_gradient_checkpointing_of_an_autoencoder_has_the_same_gradients_and_keeps_less_for_them() -> None:
    found = []
    for on in ("false", "true"):
        attention = ("autoencoder.mid_block_attention=true", "autoencoder.attention_levels=[1]")
        stage = vae_stage(f"training.autoencoder.gradient_checkpointing={on}", *attention)
        network, kept = stage.networks["reconstruction"], {}
        draw = torch.Generator().manual_seed(0)
        images, noise = (torch.randn(2, *shape, generator=draw) for shape in ((3, 32, 32), (4, 8, 8)))
        keep = torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.setdefault(id(t), t), lambda t: t)
        with keep:
            output = network(images, noise)
        kl = output.terms["kl"].divergence.mean()
        ((output.images - images).square().mean() + 1e-3 * kl).backward()
        gradients = {name: w.grad for name, w in network.named_parameters() if w.requires_grad}
        found.append((gradients, sum(tensor.nbytes for tensor in kept.values())))
    (plain, all_bytes), (checked, fewer) = found
    assert len(plain) > 50
    assert all(torch.equal(checked[name], gradient) for name, gradient in plain.items())
    assert fewer < 0.6 * all_bytes


@pytest.mark.slow
def test_compiled_networks_have_the_same_losses_and_names(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Graphs are captured as for any backend; to compile them for this CPU would take minutes and show no more.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    for make, part in ((vae_stage, "autoencoder"), (partial(unet_stage, measured), "unet")):
        plain, compiled = make(), make(f"training.{part}.compile=true")
        [name] = compiled.networks
        blocks = [module for module in compiled.networks[name].modules() if isinstance(module, ResNetBlock)]
        assert blocks
        assert all("shifted" in vars(block) for block in blocks)
        assert steps(compiled, 2) == pytest.approx(steps(plain, 2), rel=1e-5)
        assert compiled.state()["networks"][name].keys() == plain.state()["networks"][name].keys()


def test_frozen_weights_stay_and_have_no_moments(measured: Path) -> None:
    stage = unet_stage(measured, "training.unet.freeze=[text, unet.mid_block.*]")
    names = dict(stage.networks["unet"].named_parameters())
    before = {name: weight.detach().clone() for name, weight in names.items()}
    steps(stage, 3)
    moved = {name for name, weight in names.items() if not torch.equal(weight, before[name])}
    frozen = {name for name in names if name.startswith(("text_encoder.", "unet.mid_block."))}
    assert moved
    assert frozen
    assert not moved & frozen
    held = sum(len(group["params"]) for group in stage.optimizers["unet"].param_groups)
    assert held == len(names) - len(frozen)


def test_the_last_pattern_that_names_a_weight_sets_its_rate(measured: Path) -> None:
    rates = "{text: 1.0e-5, unet: 2.0e-4, 'unet.*.attn2.*': 3.0e-4}"
    stage = unet_stage(measured, f"training.unet.learning_rates={rates}")
    stage.begin(400)
    factor = stage.begin(40)
    assert 0 < factor <= 1
    rate_of = {id(w): group["lr"] for group in stage.optimizers["unet"].param_groups for w in group["params"]}
    for name, weight in stage.networks["unet"].named_parameters():
        rate = 1e-5 if name.startswith("text_encoder.") else 3e-4 if ".attn2." in name else 2e-4
        assert rate_of[id(weight)] == pytest.approx(rate * factor), name


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("freeze=[unett]", "'unett' matches no trainable weight; the parts are text_encoder, unet"),
        ("freeze=[unet, text]", "freeze matches all weights"),
        ("learning_rates={encoder: 1.0}", "'encoder' matches no trainable weight"),
    ],
)
def test_names_that_match_no_weight_raise_an_error(measured: Path, option: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        unet_stage(measured, f"training.unet.{option}")


@CPU_ONLY
def test_an_optimiser_or_a_tracker_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, resume=False)
    with pytest.raises(UserError, match=r"bitsandbytes|needs a GPU"):
        AutoencoderStage.check(settings("training.autoencoder.optimizer=adamw8bit"), run, StartingPoint())
    from accelerate import tracking

    monkeypatch.setattr(tracking, "_available_trackers", [])
    with pytest.raises(UserError, match="wandb is not installed: pip install wandb"):
        AutoencoderStage.check(settings("training.trackers=[wandb]"), run, StartingPoint())
    with pytest.raises(UserError, match=r"unknown tracker 'notebook'; accelerate has .*tensorboard.*wandb"):
        AutoencoderStage.check(settings("training.trackers=[notebook]"), run, StartingPoint())


def test_several_averages_follow_their_own_recurrences_and_are_saved(tmp_path: Path) -> None:
    names = ("ema_decay=0.99", "ema_others=[0.1,0.0]", "ema_device=cpu")
    stage = vae_stage(*(f"training.autoencoder.{name}" for name in names))
    steps(stage, 4)
    weights = dict(stage.networks["reconstruction"].named_parameters())
    newest = dict(stage.emas[2].network.named_parameters())
    assert all(torch.equal(weights[name], newest[name]) for name in weights)
    distances = [
        sum((weights[name] - average).abs().sum() for name, average in ema.network.named_parameters())
        for ema in stage.emas
    ]
    assert distances[0] > distances[1] > distances[2] == 0
    stage.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ema-0.0", "ema-0.1", "vae"]
    assert (tmp_path / "ema-0.1" / "vae" / "config.json").is_file()
    other = vae_stage(*(f"training.autoencoder.{name}" for name in names))
    other.load_state(copy.deepcopy(stage.state()))  # an optimiser keeps what it is given
    assert steps(other, 2) == steps(stage, 2)


def test_what_is_logged_and_sampled_goes_to_the_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through accelerate's own interface, with a tracker of the test's own in the place of tensorboard's."""
    from accelerate import tracking

    heard: list[tuple[str, int]] = []

    class Spy(tracking.GeneralTracker):
        name, requires_logging_directory = "tensorboard", True

        def __init__(self, run_name: str, logging_dir: str, **options: object) -> None:
            super().__init__()
            heard.append((str(logging_dir), 0))

        @property
        def tracker(self) -> object:
            return self

        def store_init_configuration(self, values: dict) -> None:
            heard.append(("max_steps: 2" in values["config"] and "config", 0))

        def log(self, values: dict, step: int | None = None, **options: object) -> None:
            heard.extend((name, step) for name in values)

        def log_images(self, values: dict, step: int | None = None, **options: object) -> None:
            heard.append((values["samples"].shape[-1], step))

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Spy)
    monkeypatch.setattr(tracking, "_available_trackers", [tracking.LoggerType.TENSORBOARD])
    asked = settings("training.trackers=[tensorboard]", "training.autoencoder.max_steps=2", "data.validation=0.5")
    AcceleratorState._reset_state(True)
    accelerator = start_accelerator(asked.training.autoencoder, 0, asked.training.trackers, tmp_path)
    stage = AutoencoderStage.build(asked, Grey(), accelerator)
    train(stage, Grey(), asked, Run(tmp_path, resume=True), Limits())
    assert {(str(tmp_path), 0), ("config", 0), ("loss", 1), ("loss", 2), ("validation_loss", 2), (3, 2)} <= set(heard)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about processors")
@pytest.mark.parametrize(
    ("asked", "there", "used"), [("bf16", True, "bf16"), ("bf16", False, "no"), ("no", True, "no")]
)
def test_without_instructions_for_bf16_training_stays_in_float32_and_says_so(
    monkeypatch: pytest.MonkeyPatch, asked: str, there: bool, used: str
) -> None:
    monkeypatch.setattr(loop, "computes_bfloat16", lambda device: there)
    AcceleratorState._reset_state(True)
    stage = settings(f"training.autoencoder.mixed_precision={asked}").training.autoencoder
    accelerator = start_accelerator(stage, 0)
    line, computed_in = loop._processes(accelerator, stage), accelerator.mixed_precision
    AcceleratorState._reset_state(True)
    assert computed_in == used
    assert f"mixed precision {used}" in line
    assert ("since this CPU has no bf16 instructions" in line) == (used != asked)


def test_curves_are_plotted_from_the_log(tmp_path: Path) -> None:
    log, out = tmp_path / "log.jsonl", tmp_path / "curves.png"
    log.write_text('{"step": 1, "loss": 1.0}\n')
    curves.plot_curves(log, out)
    assert not out.exists()
    log.write_text("".join(f'{{"step": {step}, "loss": {10 / step}}}\n' for step in range(1, 30)) + '{"step": 30, "lo')
    curves.plot_curves(log, out)
    from PIL import Image

    image = np.asarray(Image.open(out).convert("RGB")).astype(int)
    assert image.shape == (420, 900, 3)
    blue = (image[..., 2] - image[..., 0]) > 90
    rows = [np.nonzero(blue[60:, x])[0].mean() for x in (100, 300, 800)]
    assert rows[0] < rows[1] < rows[2]  # it falls


def test_the_operations_of_a_step_are_those_of_its_layers() -> None:
    """Against a sum over the convolutions' shapes, in closed form: forward, and twice that backward."""
    asked = settings("loss.adversarial.weight=0")
    from ldm.models.autoencoder.autoencoder import Autoencoder

    network, forward = Autoencoder(asked.autoencoder), 0

    def count(layer: torch.nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
        nonlocal forward
        forward += 2 * made.numel() * layer.weight[0].numel()

    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(count)
    network(torch.zeros(1, 3, 32, 32), torch.zeros(1, 4, 8, 8))
    first = 2 * 32 * 32 * network.encoder.conv_in.weight.numel()  # no gradient flows into the images
    assert cost.step_cost("autoencoder", asked).flops == 3 * forward - first
    assert cost.seconds_on(0.35 * 989e12 * 8 * 3600, 8, "h100") == pytest.approx(3600)
    with pytest.raises(UserError, match="--gpu 'abacus' is unknown: choose one of t4,"):
        cost.seconds_on(1.0, 1, "abacus")


def test_the_moments_in_the_estimate_of_memory_are_those_of_the_optimiser() -> None:
    found = cost.step_cost("unet", settings())
    whole, eight_bit, muon = (
        cost.memory(settings(f"training.unet.optimizer={optimizer}").training.unet, found)
        for optimizer in ("adamw", "adamw8bit", "muon")
    )
    assert whole - eight_bit == 6 * found.trained
    assert whole - muon == 4 * found.matrices
    assert 0.8 * found.trained < found.matrices < found.trained


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds", [pytest.param(("fsdp2",), id="fsdp2"), pytest.param(("zero1", "zero2", "zero3"), id="zero")]
)
def test_divided_weights_train_as_whole_ones_and_have_their_state(measured: Path, kinds: tuple[str, ...]) -> None:
    """In two processes, against this one; their state goes on here and this one's there."""
    if "zero1" in kinds:
        pytest.importorskip("deepspeed", reason="needs DeepSpeed: pip install deepspeed")
    import sharded_worker

    expected = {}
    for name, options in {"bf16": ("bf16",), "muon": ("no", "optimizer=muon"), "no": ("no",)}.items():
        AcceleratorState._reset_state(True)
        stage = sharded_worker.make(measured, *options)
        expected[name] = sharded_worker.steps(stage, 1, 4).tolist()
    save_tree(measured.parent / "plain", sharded_worker.state_of(stage))
    expected |= {"1-4": expected.pop("no"), "5-6": sharded_worker.steps(stage, 5, 6).tolist()}
    save_json(measured.parent / "expected.json", expected)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        sharded_worker.__file__,
        str(measured),
        *kinds,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    for kind in kinds:
        assert len(list(measured.parent.glob(f"{kind}-held-*"))) == 2
        found = torch.tensor(load_json(measured.parent / f"{kind}.json")["5-6"])
        sharded_worker.load(stage, load_tree(measured.parent / kind))
        assert_close(sharded_worker.steps(stage, 5, 6), found, 1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; run with -m gpu where there is one")
def test_eight_bit_moments_train_on_the_gpu(measured: Path) -> None:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    asked = settings("training.autoencoder.optimizer=adamw8bit")
    stage = AutoencoderStage.build(asked, Grey(), Accelerator())
    losses = steps(stage, 30)
    assert losses[-1] < 0.7 * losses[0]
    resumed = AutoencoderStage.build(asked, Grey(), Accelerator())
    resumed.load_state(copy.deepcopy(stage.state()))
    assert steps(resumed, 3) == pytest.approx(steps(stage, 3), rel=1e-3)  # sums on a GPU round differently each time
