"""A run directory is whole at every moment, and says so when it cannot be used."""

import json
import os
from pathlib import Path

import pytest
import torch

from ldm import config
from ldm.errors import UserError
from ldm.training.logging.log import Log
from ldm.training.loop import share_of
from ldm.training.runs.run import Run, SaveError
from ldm.training.runs.stop import parse_duration

CONFIG = config.load("tiny")


def write_model(folder: Path) -> None:
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text("{}")
    (folder / "model_index.json").write_text("{}")


def saved(run: Run, step: int) -> Path:
    return run.save(step, write_model, {"weight": torch.full((2,), step)}, CONFIG)


def test_the_newest_step_is_what_a_run_continues_from(tmp_path: Path) -> None:
    run = Run(tmp_path, resume=False)
    assert run.load_state() is None
    for step in (5, 10, 1000000):
        saved(run, step)
    saved_last = Run(tmp_path, resume=True).load_state()
    assert saved_last.step == 1000000
    assert saved_last.state["weight"].tolist() == [1000000, 1000000]
    assert config.load(saved_last.folder / "config.yaml") == CONFIG


def test_only_the_newest_steps_are_kept(tmp_path: Path) -> None:
    run = Run(tmp_path, resume=False)
    for step in (1, 2, 3):
        saved(run, step)
    run.prune(2)
    assert [folder.name for folder in run.steps()] == ["step-000002", "step-000003"]


def test_a_failed_write_leaves_the_older_steps_and_nothing_else(tmp_path: Path) -> None:
    run = Run(tmp_path, resume=False)
    saved(run, 1)

    def full(folder: Path) -> None:
        write_model(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(SaveError, match="No space left on device; step-000001 and older steps are untouched"):
        run.save(2, full, {}, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert run.load_state().step == 1


def test_the_finished_model_is_at_the_top_of_the_run_until_training_continues(tmp_path: Path) -> None:
    run = Run(tmp_path, resume=False)
    folder = saved(run, 1)
    run.publish()
    assert (tmp_path / "model_index.json").is_file()
    assert (tmp_path / "vae" / "config.json").is_file()
    assert not (tmp_path / "state").exists()
    assert (folder / "state").is_dir()
    run.unpublish()
    assert not (tmp_path / "model_index.json").exists()


def test_a_folder_that_contains_a_run_raises_an_error_without_resume(tmp_path: Path) -> None:
    saved(Run(tmp_path, resume=False), 1)
    with pytest.raises(UserError, match="--resume"):
        Run(tmp_path, resume=False)
    Run(tmp_path / "new", resume=True)


def test_the_log_forgets_what_came_after_the_step_that_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    facts = {"loss": 1.0, "seconds_per_step": 0.1}
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        with Log(path, start, end=4) as log:
            for step in steps:
                log.report({"step": step, **facts})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("9m", 540), ("1h30m", 5400), ("1.5h", 5400), ("2m5s", 125)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "9x", "m", "-3s"])
def test_an_invalid_duration_raises_an_error(text: str) -> None:
    with pytest.raises(UserError, match="expected a duration"):
        parse_duration(text)


def test_a_batch_that_cannot_be_divided_raises_an_error() -> None:
    class Four:
        num_processes, process_index = 4, 1

    assert share_of(Four(), 16, 2).slots(1) == range(10, 12)
    with pytest.raises(UserError, match="batch_size 10 is not divisible by 4 processes"):
        share_of(Four(), 10, 1)


def test_a_run_is_written_by_one_training_at_a_time(tmp_path: Path) -> None:
    held, go = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        run = Run(tmp_path, resume=False)
        os.write(held[1], run.path.name[:1].encode())
        os.read(go[0], 1)
        os._exit(0)
    os.read(held[0], 1)
    with pytest.raises(UserError, match=f"another training writes to {tmp_path}"):
        Run(tmp_path, resume=True)
    os.write(go[1], b"x")
    os.waitpid(child, 0)
    assert Run(tmp_path, resume=True).steps() == []
