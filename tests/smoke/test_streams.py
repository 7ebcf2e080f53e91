"""Output whose reader has gone, or that cannot be written: no work is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from nursery import Nursery
from running import SMALL

from ldm.training.logging.log import read_log
from ldm.training.runs.run import Run

GUARDED = "import sys; from ldm.cli.streams import guard_streams; guard_streams(); "
LINES = "[print(number, 'x' * 1000, file=sys.{0}) for number in range(100)]; sys.{0}.flush(); "
TINY = ("--data", "scenes", *SMALL)


def start(code: str, **streams: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", GUARDED + code], text=True, **streams)


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_the_rest_of_the_output_is_discarded_if_its_reader_has_gone(tmp_path: Path, name: str) -> None:
    code = f"{LINES.format(name)} open({str(tmp_path / 'done')!r}, 'w').close()"
    with start(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        stream, other = (process.stdout, process.stderr) if name == "stdout" else (process.stderr, process.stdout)
        assert stream.readline().startswith("0 x")
        stream.close()
        assert other.read() == ""
        assert process.wait(30) == 0
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_output_that_was_closed_from_the_start_is_discarded(name: str) -> None:
    number = {"stdout": 1, "stderr": 2}[name]
    with start(LINES.format(name), preexec_fn=lambda: os.close(number)) as process:
        assert process.wait(30) == 0


def test_a_full_disk_is_an_error_on_standard_output_alone() -> None:
    code = f"{LINES.format('stderr')} {LINES.format('stdout')}"
    with Path("/dev/full").open("w") as full, start(code, stdout=full, stderr=subprocess.PIPE) as process:
        said = process.stderr.read()
        assert process.wait(30) == 1
    assert said.splitlines()[-1].endswith("UserError: standard output cannot be written: No space left on device")
    with Path("/dev/full").open("w") as full, start(LINES.format("stderr"), stderr=full) as process:
        assert process.wait(30) == 0


@pytest.mark.slow
def test_training_continues_after_the_reader_of_its_log_exits(nursery: Nursery, tmp_path: Path) -> None:
    pipe, run = tmp_path / "log", tmp_path / "run"
    os.mkfifo(pipe)
    words = ["train-vae", "tiny", *TINY, "--out", run, "--max-steps", 3, "--set", "training.autoencoder.log_every=1"]
    pids = nursery.start(words, pipe, printed=tmp_path / "printed")
    with pipe.open() as log:
        assert log.readline()
    assert nursery.wait(pids) == [0]
    assert [report["step"] for report in read_log(run / "log.jsonl") if "loss" in report] == [1, 2, 3]
    assert Run(run, resume=True).load_state().step == 3


@pytest.mark.slow
def test_processes_agree_to_stop_at_any_step(nursery: Nursery, tmp_path: Path) -> None:
    run, said, stage = tmp_path / "run", tmp_path / "said", "training.autoencoder"
    words = ["train-vae", "tiny", *TINY, "--out", run, "--max-steps", 10**6, "--save-every", 10**6]
    words += ["--set", f"{stage}.log_every=1000000", "--set", f"{stage}.validation_images=0"]
    pids = nursery.start(words, said, processes=2)
    while not (run / "log.jsonl").exists() or not read_log(run / "log.jsonl"):
        assert all(Path(f"/proc/{pid}").exists() for pid in pids), said.read_text()
    os.kill(pids[1], signal.SIGTERM)  # only the second one
    assert nursery.wait(pids[:1]) == nursery.wait(pids[1:]) == [130]
    step = Run(run, resume=True).load_state().step
    assert 1 <= step < 10**6
    assert f"interrupted: step {step} is saved in {run}" in said.read_text()
