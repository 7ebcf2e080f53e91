"""Training that comes to nan or infinity stops, names step and term, and leaves steps from which it can go on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from grey import Grey
from nursery import Nursery
from tiny_runs import OPTIONS, SMALLER, start
from tiny_stages import Colours, autoencoder_stage, settings, unet_stage

from ldm import config
from ldm.config.training import StageConfig
from ldm.data.loader import Batch
from ldm.training import loop
from ldm.training.diagnostics.divergence import PATIENCE, DivergedError, Divergence, not_finite
from ldm.training.logging.log import read_log
from ldm.training.runs.run import Run
from ldm.training.runs.stop import Limits
from ldm.training.stages.autoencoder import AutoencoderStage
from ldm.training.stages.stage import StepReport

NAN, INF = float("nan"), float("inf")
GOOD = {"reconstruction": 0.1, "kl": 2.0, "nll": 0.1, "loss": 0.2, "gradient_norm": 0.5}


def fake(scaled: bool = False, main: bool = True, others: Sequence[float] = ()) -> Accelerator:
    """Of two processes, the other of which has these values, or the same."""

    def reduce(values: torch.Tensor, how: str) -> torch.Tensor:
        assert how == "sum"
        return values + (torch.tensor(others) if others else values)

    return SimpleNamespace(scaler=object() if scaled else None, is_main_process=main, reduce=reduce)


class Noted(Divergence):
    """Checks the steps that `note` has collected."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.steps: list[tuple[int, dict[str, torch.Tensor]]] = []

    def check(self) -> dict[str, float]:
        steps, self.steps = self.steps, []
        return super().check(steps)


def divergence(tmp_path: Path, accelerator: Accelerator | None = None, **options: object) -> Noted:
    return Noted(accelerator or fake(), "unet", StageConfig(**options), Run(tmp_path, resume=True))


def note(found: Noted, step: int, **changes: float) -> None:
    found.steps.append((step, {name: torch.tensor(value) for name, value in (GOOD | changes).items()}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kl": NAN, "loss": NAN}, "in step 7: the loss term kl (nan) is not finite. "),
        (
            {"reconstruction": INF, "kl": NAN, "nll": INF, "loss": NAN, "gradient_norm": NAN},
            "in step 7: the loss terms reconstruction (inf) and kl (nan) are not finite. ",
        ),
        ({"nll": INF, "loss": INF}, "in step 7: the loss terms nll (inf) and loss (inf) are not finite. "),
        ({"gradient_norm": NAN}, "in step 7: the gradient (its norm is nan) is not finite, but all losses are. "),
        (
            {"discriminator_gradient_norm": INF},
            "in step 7: the discriminator's gradient (its norm is inf) is not finite, but all losses are. ",
        ),
    ],
)
def test_the_first_step_and_the_term_are_named(tmp_path: Path, changes: dict[str, float], said: str) -> None:
    found = divergence(tmp_path)
    for step in range(1, 7):
        note(found, step)
    assert found.check() == {}
    note(found, 7, **changes)
    note(found, 8, **dict.fromkeys(GOOD, NAN))
    with pytest.raises(DivergedError) as error:
        found.check()
    assert str(error.value).startswith(f"training diverged {said}")
    assert "a lower training.unet.learning_rate than 0.0001, or a lower gradient_clip, which is 1" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_another_process_has_stops_all_of_them(tmp_path: Path) -> None:
    others = [*GOOD.values(), *(GOOD | {"kl": NAN}).values()]
    for main, expected in ((True, DivergedError), (False, SystemExit)):
        found = divergence(tmp_path, fake(main=main, others=others))
        note(found, 1)
        note(found, 2)
        with pytest.raises(expected) as end:
            found.check()
        assert "step 2: the loss term kl" in str(end.value) if main else end.value.code == 2


def test_a_scaler_may_skip_steps_but_not_go_on_without_a_loss(tmp_path: Path) -> None:
    found = divergence(tmp_path, fake(scaled=True), mixed_precision="fp16")
    for step in range(1, 5 * PATIENCE):
        note(found, step, gradient_norm=INF)
    assert found.check() == {"skipped": 1.0}
    for step in range(1, 5 * PATIENCE):
        lost = {"loss": NAN, "kl": NAN} if step % PATIENCE else {}
        note(found, step, **lost)
        if step % 7 == 0:
            found.check()
    found.check()
    note(found, 100)
    for step in range(101, 101 + PATIENCE):
        note(found, step, loss=NAN, kl=INF, gradient_norm=NAN)
    with pytest.raises(
        DivergedError, match=r"in step 101: the loss term kl \(inf\) is not finite, nor in the 19 steps"
    ):
        found.check()


def test_a_state_is_looked_through_by_the_names_of_its_tensors(tmp_path: Path) -> None:
    state = {"networks": {"unet": {"a": torch.zeros(2)}}, "moments": [{"n": torch.tensor([1])}, {"v": torch.ones(3)}]}
    found = divergence(tmp_path)
    assert found.check_state(4, state, {"validation_loss": 0.1}) is None
    assert found.check_state(4, state, {"validation_loss": NAN}) == (
        "after step 4: the validation loss of the averaged weights is not finite"
    )
    state["moments"][1]["v"][2] = INF
    assert list(not_finite(state)) == ["moments.1.v"]
    assert found.check_state(4, state, {}) == "after step 4: moments.1.v is not finite, but all losses were"


def go_on(run: Path, *options: str) -> AutoencoderStage:
    stage, folder, asked = start(run, "decay=constant", "warmup_steps=0", *options)
    loop.train(stage, Grey(), asked, folder, Limits())
    return stage


def finite_weights(stage: AutoencoderStage) -> bool:
    return next(not_finite(stage.state()), None) is None


def test_a_learning_rate_of_a_million_stops_with_step_and_term_and_a_normal_one_continues(tmp_path: Path) -> None:
    go_on(tmp_path, "max_steps=2", "save_every=2")
    with pytest.raises(DivergedError) as error:
        go_on(tmp_path, "max_steps=20", "save_every=6", "learning_rate=1e6", "log_every=5")
    said = str(error.value)
    assert "training diverged in step 4: the loss terms reconstruction" in said
    assert f"step-000002 in {tmp_path} is the last good state: continue from it with --resume" in said
    assert "than 1e+06" in said
    assert read_log(tmp_path / "log.jsonl")[-1] == {"step": 5, "stopped": said}
    assert [folder.name for folder in Run(tmp_path, resume=True).steps()] == ["step-000002"]
    stage = go_on(tmp_path, "max_steps=6", "save_every=6", "learning_rate=1e-3", "log_every=1")
    assert {group["lr"] for group in stage.optimizers["reconstruction"].param_groups} == {1e-3}
    assert finite_weights(stage)
    course = [facts["loss"] for facts in read_log(tmp_path / "log.jsonl") if "loss" in facts]
    assert len(course) == 6
    assert max(course[2:]) < 2 * course[0]


def test_what_is_not_finite_is_found_before_it_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss between two logs, and weights that no loss has shown to be infinite."""
    train_step, averages = AutoencoderStage.train_step, AutoencoderStage.update_averages

    def lost(stage: AutoencoderStage, batches: list[Batch], step: int, schedule_step: int) -> StepReport:
        losses, observed = train_step(stage, batches, step, schedule_step)
        return StepReport(losses | ({"kl": losses["kl"] * INF} if step == 3 else {}), observed)

    def poisoned(stage: AutoencoderStage, network: torch.nn.Module, step: int) -> None:
        averages(stage, network, step)
        if step == 3:
            with torch.no_grad():
                stage.networks["reconstruction"].autoencoder.quant_conv.bias[0] = NAN

    for name, method, said in (
        ("train_step", lost, r"in step 3: the loss term kl \(inf\)"),
        (
            "update_averages",
            poisoned,
            "after step 3: networks.reconstruction.autoencoder.quant_conv.bias is not finite",
        ),
    ):
        every = 2 if name == "train_step" else 1
        monkeypatch.setattr(AutoencoderStage, name, method)
        with pytest.raises(DivergedError, match=f"{said}.*step-000002 in .* is the last"):
            go_on(tmp_path / name, "max_steps=9", f"save_every={every}", "log_every=100")
        monkeypatch.undo()
        saved = Run(tmp_path / name, resume=True).load_state()
        assert saved.step == 2
        assert next(not_finite(saved.state), None) is None
        numbers = [fact for facts in read_log(tmp_path / name / "log.jsonl") for fact in facts.values()]
        assert all(math.isfinite(number) for number in numbers if isinstance(number, float))


@pytest.mark.slow
def test_a_huge_kl_weight_collapses_the_posterior_and_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("batch_size=4", "max_steps=130", "learning_rate=0.05", "validation_images=0", "statistics_images=4")
    overrides = [*SMALLER, "loss.kl.weight=100", *(f"training.autoencoder.{option}" for option in options)]
    asked, run = config.load("tiny", overrides), Run(tmp_path, resume=True)
    torch.manual_seed(0)
    loop.train(AutoencoderStage.build(asked, Grey(), Accelerator(cpu=True)), Grey(), asked, run, Limits())
    lines = [facts for facts in read_log(tmp_path / "log.jsonl") if "KL collapse" in facts.get("found", "")]
    line = lines[-1]  # the channels collapse one after the other
    assert line["found"] == "KL collapse in all 4 channels"
    assert "Reduce loss.kl.weight from 100" in line["text"]
    said = capsys.readouterr().err
    assert f"step {line['step']}: KL collapse in all 4 channels: the posterior equals the prior" in said
    assert f"KL collapse in all 4 channels (since step {lines[0]['step']})" in said.split("diagnosis:")[1]


def test_a_unet_that_diverges_is_stopped_alike(tmp_path: Path) -> None:
    first = autoencoder_stage()
    first.finish(Colours())
    first.save(tmp_path)
    options = ("learning_rate=1e6", "warmup_steps=0", "max_steps=9", "sample_prompts=[]", "cache_latents=false")
    overrides = [f"training.unet.{option}" for option in options]
    stage, run = unet_stage(tmp_path / "vae", *overrides), Run(tmp_path / "run", resume=True)
    with pytest.raises(DivergedError, match=r"in step \d: (the loss term loss|the gradient) .* No step was saved"):
        loop.train(stage, Colours(), settings(*overrides), run, Limits())
    assert not run.steps()


@pytest.mark.slow
def test_two_processes_stop_together_with_one_line_and_go_on_from_what_was_saved(
    nursery: Nursery, tmp_path: Path
) -> None:
    said, run = tmp_path / "said.txt", tmp_path / "run"

    def words(steps: int, rate: float) -> list[object]:
        options = (*SMALLER, "data.scenes.num=16", "data.scenes.concepts=5")
        options += tuple(f"training.autoencoder.{option}" for option in (*OPTIONS, "log_every=3", "warmup_steps=0"))
        sets = [word for option in options for word in ("--set", option)]
        last = ("--set", f"training.autoencoder.learning_rate={rate}", "--max-steps", steps, "--save-every", 2)
        return ["train-vae", "tiny", "--data", "scenes", *sets, *last, "--resume", "--out", run]

    assert nursery.run(words(2, 1e-3), said, processes=2) == [0, 0], said.read_text()
    pids = nursery.start(words(9, 1e6), said, processes=2)
    assert [status for pid in pids for status in nursery.wait([pid])] == [2, 2]
    [line] = [line for line in said.read_text().splitlines() if line.startswith("ldm: ")]
    assert "training diverged in step 4: the loss terms" in line
    assert "step-000002" in line
    assert nursery.run(words(4, 1e-3), said, processes=2) == [0, 0], said.read_text()
    assert Run(run, resume=True).load_state().step == 4
