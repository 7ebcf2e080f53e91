"""When a run saves, what it keeps, and how a full disk or a failed write harms nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from grey import Grey
from running import Command
from tiny_runs import OPTIONS, settings, start

from ldm.errors import UserError
from ldm.storage.store import load_json, save_json, save_tensors
from ldm.training import loop
from ldm.training.logging.log import read_log
from ldm.training.runs.run import Run, SaveError
from ldm.training.runs.saving import Saver
from ldm.training.runs.stop import Limits
from ldm.training.stages.autoencoder import AutoencoderStage


def train(run: Path, *more: str, held_out: float | None = None) -> None:
    stage, folder, asked = start(run, *more)
    asked = asked.model_copy(update={"data": asked.data.model_copy(update={"validation": held_out})})
    loop.train(stage, Grey(), asked, folder, Limits())


@pytest.fixture
def terminal() -> Iterator[None]:
    """Let SIGHUP end processes, also if the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    stage, run, asked = start(tmp_path, "save_every=100")
    begin = stage.begin

    def interrupted(step: int, at: int) -> float:
        if step == 2:
            os.kill(os.getpid(), number)
        return begin(step, at)

    monkeypatch.setattr(stage, "begin", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.train(stage, Grey(), asked, run, Limits())
    assert f"interrupted: step 2 is saved in {tmp_path}, --resume continues" in capsys.readouterr().err
    assert [folder.name for folder in run.steps()] == ["step-000002"]
    assert not (tmp_path / "vae").exists()


@pytest.fixture
def under_nohup() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("under_nohup")
def test_a_closed_terminal_is_ignored_under_nohup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, run, asked = start(tmp_path, "save_every=100")
    begin = stage.begin
    monkeypatch.setattr(stage, "begin", lambda *at: os.kill(os.getpid(), signal.SIGHUP) or begin(*at))
    loop.train(stage, Grey(), asked, run, Limits())
    assert [folder.name for folder in run.steps()] == ["step-000004"]


@pytest.mark.slow
@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_all_processes_finds_the_data_still_being_loaded(tmp_path: Path, number: signal.Signals) -> None:
    options = [*OPTIONS[2:], "log_every=1", "max_steps=100000"]
    sets = [word for option in options for word in ("--set", f"training.autoencoder.{option}")]
    words = ["train-vae", "tiny", "--data", "scenes", "--set", "data.scenes.num=16", "--set", "data.workers=1", *sets]
    command = [sys.executable, "-m", "ldm", *words, "--save-every", "100000", "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = next(line for line in process.stderr if line.startswith("step 2/"))
        os.killpg(process.pid, number)
        said += process.stderr.read()
        assert process.wait(60) == 130, said
    assert "is saved in" in said
    assert Run(tmp_path / "run", resume=True).load_state().step >= 2


def test_the_time_limit_saves_and_finishes_the_run(tmp_path: Path) -> None:
    stage, run, asked = start(tmp_path, "save_every=100")
    loop.train(stage, Grey(), asked, run, Limits(seconds=0.0))
    assert [folder.name for folder in run.steps()] == ["step-000001"]
    assert (tmp_path / "vae" / "config.json").is_file()
    assert (tmp_path / "samples" / "step-000001.png").is_file()


def test_a_failed_write_is_reported_and_the_next_save_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage, run, asked = start(tmp_path)
    write, calls = stage.save, []

    def failing(folder: Path) -> None:
        calls.append(folder)
        write(folder)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(stage, "save", failing)
    loop.train(stage, Grey(), asked, run, Limits())
    [line] = [line for line in capsys.readouterr().err.splitlines() if "could not be written" in line]
    assert line == (
        f"{tmp_path}/step-000002 could not be written: Input/output error; step-000001 and older steps are untouched; "
        "training continues and saves again at step 3"
    )
    assert [folder.name for folder in run.steps()][-2:] == ["step-000003", "step-000004"]
    assert not list(tmp_path.glob(".step-*"))


def test_a_last_save_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, run, asked = start(tmp_path, "save_every=3")

    def failing(folder: Path) -> None:
        if "000004" in folder.name:
            raise OSError(28, "No space left on device")
        AutoencoderStage.save(stage, folder)

    monkeypatch.setattr(stage, "save", failing)
    with pytest.raises(SaveError, match="No space left on device; step-000003 and older steps are untouched"):
        loop.train(stage, Grey(), asked, run, Limits())
    train(tmp_path)
    assert (tmp_path / "vae" / "config.json").is_file()


def test_a_save_is_not_begun_where_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, tensors = Run(tmp_path, resume=False), {"weight": torch.zeros(2**20)}
    writes: list[Path] = []
    usage = type("usage", (), {"free": 2**20})
    monkeypatch.setattr("ldm.training.runs.run.shutil.disk_usage", lambda path: usage)
    with pytest.raises(SaveError, match=r"the disk has 1 MiB free, but 5 MiB are needed; no step has been saved yet"):
        run.save(1, writes.append, tensors, settings())
    assert not writes
    usage.free = 10 * 2**20
    run.save(1, writes.append, tensors, settings())
    usage.free = 3 * 2**20
    with pytest.raises(SaveError, match="3 MiB free, but 4 MiB are needed; step-000001"):
        run.save(2, writes.append, tensors, settings())
    assert len(writes) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Leave no byte."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**12))
        except OSError:
            return


def test_tensors_that_do_not_fit_on_the_disk_are_an_os_error(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left on device") as caught:
        save_tensors(small_disk / "weights.safetensors", {"weight": torch.zeros(2**24)})
    assert "No space left on device" in caught.value.strerror
    assert not list(small_disk.iterdir())


def test_a_disk_that_fills_up_during_a_save(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage, run, asked = start(small_disk / "run")
    write, calls = stage.save, []

    def crowded(folder: Path) -> None:
        """Somebody else fills the disk at the second save, and deletes that again before the fourth."""
        calls.append(folder)
        if len(calls) == 2:
            fill(small_disk)
        write(folder)

    begin = stage.begin

    def freed(step: int, at: int) -> float:
        if step == 4:
            # Whatever the disk was like, the first save is whole.
            assert Run(run.path, resume=True).load_state().step == 1
            (small_disk / "filler").unlink()
        return begin(step, at)

    monkeypatch.setattr(stage, "save", crowded)
    monkeypatch.setattr(stage, "begin", freed)
    loop.train(stage, Grey(), asked, run, Limits())
    said = capsys.readouterr().err
    assert "step-000002 could not be written: No space left on device" in said
    assert "step-000003 could not be written: the disk has 0 MiB free" in said
    assert run.load_state().step == 4
    assert all(facts["step"] in (1, 2, 3, 4) for facts in read_log(run.path / "log.jsonl"))


@pytest.mark.slow
def test_a_run_whose_disk_was_full_is_resumed_when_there_is_space_again(small_disk: Path, ldm: Command) -> None:
    out, filled = small_disk / "run", threading.Event()

    def watch() -> None:
        while not (out / "step-000003").exists() and not filled.is_set():
            time.sleep(0.001)
        fill(small_disk)

    options = [word for option in OPTIONS for word in ("--set", f"training.autoencoder.{option}")]
    words = ["train-vae", "tiny", "--data", "scenes", "--set", "data.scenes.num=16", *options, "--out", out]
    watcher = threading.Thread(target=watch)
    watcher.start()
    done = ldm(*words, check=False)
    filled.set()
    watcher.join()
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("ldm: ")]
    assert "step-000004 could not be written" in line
    assert "step-000003 and older steps are untouched" in line
    os.unlink(small_disk / "filler")
    assert "is saved" in ldm(*words, "--resume").stderr
    assert Run(out, resume=True).load_state().step == 4


def test_the_best_step_is_kept_besides_the_newest(tmp_path: Path) -> None:
    run = Run(tmp_path, resume=False)
    for step, loss in enumerate((0.5, 0.2, 0.4, 0.3, 0.25), 1):
        run.save(step, lambda folder: None, {}, settings(), {"validation_loss": loss})
        run.prune(keep=1)
    assert [folder.name for folder in run.steps()] == ["step-000002", "step-000005"]
    run.prune(keep=1, keep_best=False)
    assert [folder.name for folder in run.steps()] == ["step-000005"]


def test_a_kill_between_two_names_of_a_step_loses_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, resume=False)
    run.save(1, lambda folder: None, {}, settings())
    (tmp_path / "step-000001").rename(tmp_path / ".step-000001.old")
    (tmp_path / ".step-000002.tmp").mkdir()
    assert Run(tmp_path, resume=True).load_state().step == 1
    assert not list(tmp_path.glob(".step-*"))


def test_an_inexact_resume_is_reported_in_one_line_and_an_exact_one_is_silent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, "max_steps=2")
    for more, expected in (
        (("max_steps=2", "keep=3", "log_every=1", "save_every=2"), None),
        (("max_steps=2", "batch_size=2"), "batch_size 2, was 4 (this epoch repeats or skips some images)"),
        (("max_steps=2", "batch_size=2", "learning_rate=0.5"), "training.autoencoder.learning_rate 0.5, was 0.002"),
    ):
        capsys.readouterr()
        train(tmp_path, *more)
        lines = [line for line in capsys.readouterr().err.splitlines() if "not exactly" in line]
        assert len(lines) == (expected is not None)
        assert expected is None or expected in lines[0]


def test_the_validation_loss_is_that_of_the_averaged_weights_and_does_not_disturb_training(tmp_path: Path) -> None:
    train(tmp_path / "with", held_out=0.3)
    train(tmp_path / "without", "validation_images=0", held_out=0.3)
    reports = {name: read_log(tmp_path / name / "log.jsonl") for name in ("with", "without")}
    found = [facts["validation_loss"] for facts in reports["with"] if "validation_loss" in facts]
    assert len(found) == 4
    assert found[-1] < found[0]
    losses = {name: [facts["loss"] for facts in log if "loss" in facts] for name, log in reports.items()}
    assert losses["with"] == losses["without"]
    run = Run(tmp_path / "with", resume=True)
    assert run.facts(run.best())["validation_loss"] == min(found)


def test_moments_of_another_optimizer_raise_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, "max_steps=1", "save_every=1")
    stage, run, asked = start(tmp_path, "max_steps=2", "optimizer=adamw")
    other = settings("max_steps=2", "optimizer=adamw8bit")
    with pytest.raises(UserError, match="step-000001 was trained with optimizer adamw, whose state adamw8bit cannot"):
        Saver(stage, run, other, Grey()).resume()
    assert Saver(stage, run, asked, Grey()).resume()[0] == 1


def test_a_run_from_before_renames_resumes_exactly(tmp_path: Path) -> None:
    train(tmp_path, "max_steps=1", "save_every=1")
    folder = tmp_path / "step-000001"
    facts = load_json(folder / "state" / "facts.json")
    old = {"images": "pictures", "sharding": "division"}
    save_json(folder / "state" / "facts.json", {old.get(name, name): value for name, value in facts.items()})
    config_yaml = (folder / "config.yaml").read_text()
    assert "validation_images" in config_yaml
    (folder / "config.yaml").write_text(config_yaml.replace("_images:", "_pictures:"))
    stage, run, asked = start(tmp_path, "max_steps=1")
    assert Saver(stage, run, asked, Grey()).resume() == (1, None)
