"""The built-in model in one command: time is divided, what is done stays done, and a model comes out."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate import Accelerator

from ldm import TextToImage
from ldm.config.training import StageConfig
from ldm.recipe.sweep import GUIDANCE, SAMPLERS, STEPS, Cell, Curves, Scores
from ldm.recipe.timetable import OutOfTimeError, Timetable
from ldm.training.optim.schedules import Clock, learning_rate_factor

CURVES = Curves(samples=8, curve_samples=4, metrics=("scenes",))


def report(score: float) -> dict:
    return {"results": {"scene_whole": score}}


def test_schedules_follow_the_time_where_a_run_has_one() -> None:
    config = StageConfig(max_steps=1000, decay="linear", warmup_steps=10)
    clock = Clock(config, Accelerator(cpu=True), budget=100.0, spent=50.0)
    assert 500 <= clock.schedule_step(7) <= 502  # half of the time: as at half of the steps, however few they were
    assert clock.schedule_step(800) == 800
    assert learning_rate_factor(config, 7, 500) == 7 / 10  # but the warm-up is one of steps
    assert learning_rate_factor(config, 20, 505) == pytest.approx(0.5, abs=0.01)
    assert learning_rate_factor(config, 20, 1000) == pytest.approx(learning_rate_factor(config, 1000))
    assert clock.left(None) == 50.0
    assert clock.left(9.0) == 9.0
    assert Clock(config, Accelerator(cpu=True), None, 50.0).schedule_step(7) == 7
    assert Clock(config, Accelerator(cpu=True), 0.0, 0.0).schedule_step(1) == 1000  # no time at all


def test_what_a_part_leaves_over_is_the_next_ones(tmp_path: Path) -> None:
    times = Timetable(tmp_path / "times.json", total=1000.0)
    assert times.budget("autoencoder", 0.0) == pytest.approx(270.0)
    with times.part("autoencoder"):
        time.sleep(0.2)
    again = Timetable(tmp_path / "times.json", total=1000.0)
    assert again.spent["autoencoder"] == pytest.approx(0.2, abs=0.1)
    assert again.budget("unet", 0.0) == pytest.approx(829.8, abs=0.2)
    assert again.budget("unet", 400.0) == pytest.approx(1229.8, abs=0.2)  # what was trained counts as trained


def test_a_command_s_time_ends_before_its_limit(tmp_path: Path) -> None:
    times = Timetable(tmp_path / "times.json", command=100.0)
    assert times.left() == pytest.approx(94.0, abs=0.5)
    late = Timetable(tmp_path / "times.json", command=100.0, began=time.monotonic() - 95)
    with pytest.raises(OutOfTimeError):
        late.until_end()
    assert Timetable(tmp_path / "times.json").left() is None


def test_cells_are_measured_once_and_guidance_is_chosen_on_other_prompts(tmp_path: Path) -> None:
    scores, measured = Scores(tmp_path / "scores.jsonl"), []
    for cell in CURVES.missing(scores):
        measured.append(cell)
        scores.add(cell, report(0.9 if cell.guidance == 3.0 else 0.5))
    assert len(measured) == len(GUIDANCE) + 1 + len(STEPS) * len(SAMPLERS)
    assert not list(CURVES.missing(Scores(tmp_path / "scores.jsonl")))
    tests = [cell for cell in measured if cell.name == "test"]
    assert tests == [Cell("test", 3.0, 30, "ddim", 8, 0)]
    assert all(cell.seed == 1 for cell in measured if cell.name != "test")


@pytest.mark.slow
def test_one_command_makes_a_model_and_resumes_where_it_stopped(tmp_path: Path) -> None:
    few = ("data.scenes.num=96", "training.unet.sample_prompts=[a dog]", "training.autoencoder.statistics_images=32")
    words = ["tiny", "--out", tmp_path, "--total-time", "30s", "--samples", 8, "--curve-samples", 2]
    words += [word for option in few for word in ("--set", option)] + ["--metrics", "scenes,psnr"]

    def run(*more: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "ldm.recipe", *map(str, [*words, *more])]
        return subprocess.run(command, capture_output=True, text=True, timeout=240)

    stopped = run("--max-time", "6s")
    assert stopped.returncode == 3, stopped.stderr
    assert "contains an unfinished model" in run().stderr
    finished = run("--resume")
    assert finished.returncode == 0, finished.stderr
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["guidance"] in GUIDANCE
    assert {"psnr", "scene_whole", "scene_whole_probe"} <= found["results"].keys()
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == len(GUIDANCE) + 1 + len(STEPS) * len(SAMPLERS)
    assert (tmp_path / "guidance.png").is_file()
    assert (tmp_path / "steps.png").is_file()
    assert len(TextToImage.from_pretrained(tmp_path / "model")("a dog", num_inference_steps=2)) == 1
