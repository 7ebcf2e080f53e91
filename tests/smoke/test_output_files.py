"""Files in a folder are numbered on and never overwritten; a file that --out names is."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import here

from ldm.cli.output import new_file

FAST = ("--steps", 1, "--cfg", 1)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pattern(path: Path, seed: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def test_a_second_generate_numbers_on_in_the_default_folder(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    generate = ("generate", "a dog", "--model", tiny_pipeline, *FAST)
    here(*generate, "--num", 2)
    before = contents(tmp_path / "generated")
    assert sorted(before) == ["a-dog-0.png", "a-dog-1.png"]
    here(*generate, "--seed", 5)
    here(*generate, "--grid")
    here(*generate, "--grid", "--seed", 5)
    after = contents(tmp_path / "generated")
    assert sorted(after) == ["a-dog-0.png", "a-dog-1.png", "a-dog-2.png", "grid-1.png", "grid.png"]
    assert before.items() <= after.items()


def test_a_file_that_out_names_is_overwritten(tiny_pipeline: Path, tmp_path: Path) -> None:
    generate = ("generate", "a dog", "--model", tiny_pipeline, *FAST, "--out", tmp_path / "a.png")
    here(*generate)
    first = contents(tmp_path)
    here(*generate, "--seed", 5)
    assert contents(tmp_path).keys() == {"a.png"}
    assert contents(tmp_path) != first


def test_reconstructions_of_equal_names_do_not_replace_each_other_or_an_original(
    tiny_vae: Path, tmp_path: Path
) -> None:
    files = [pattern(tmp_path / folder / "1.png", seed) for seed, folder in enumerate(("a", "b"))]
    originals = [file.read_bytes() for file in files]
    here("reconstruct", *files, "--model", tiny_vae, "--out", tmp_path / "a")
    assert [file.read_bytes() for file in files] == originals
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["1-1.png", "1-2.png", "1.png"]


def test_frames_and_sequences_number_on(tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    between = ("interpolate", "a dog", "a cat", "--model", tiny_pipeline, "--frames", 2, "--steps", 1)
    here(*between)
    here(*between)
    here(*between, "--out", "frames")
    here(*between, "--out", "frames")
    assert sorted(path.name for path in (tmp_path / "generated").iterdir()) == ["interpolate-1.gif", "interpolate.gif"]
    assert sorted(path.stem for path in (tmp_path / "frames").iterdir()) == [f"frame-00{i}" for i in range(4)]


def test_processes_that_write_at_the_same_time_get_different_files(tmp_path: Path) -> None:
    code = "import pathlib, sys; from ldm.cli.output import new_file; path = pathlib.Path(sys.argv[1])"
    code += "\nfor _ in range(50): new_file(path)"
    processes = [subprocess.Popen([sys.executable, "-c", code, tmp_path / "a.png"]) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 100
    assert new_file(tmp_path / "a.png").name == "a-100.png"
