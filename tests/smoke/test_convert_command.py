"""`ldm convert` as a person runs it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from running import Command
from single_files import GOLDEN, golden_weights


def test_a_checkpoint_becomes_a_pipeline(ldm: Command, tmp_path: Path) -> None:
    torch.save({"state_dict": golden_weights("uncond-vq")}, tmp_path / "model.ckpt")
    config = GOLDEN / "uncond-vq" / "config.yaml"
    done = ldm("convert", tmp_path / "model.ckpt", tmp_path / "pipeline", "--config", config, "--format", "diffusers")
    assert done.stdout.split() == [str(tmp_path / "pipeline")]
    assert {path.name for path in (tmp_path / "pipeline").iterdir()} == {
        "model_index.json",
        "scheduler",
        "unet",
        "vqvae",
    }


class Shell:
    """What a hostile file holds: a call of the operating system's shell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.folder}/run",)


def test_a_file_that_contains_code_raises_a_one_line_error(here: Command, tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "extra": Shell(tmp_path)}, tmp_path / "model.ckpt")
    done = here("convert", tmp_path / "model.ckpt", tmp_path / "pipeline", check=False)
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("ldm: ")
    assert "system" in line
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]
