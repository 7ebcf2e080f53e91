"""The package as a person has it: the console script from anywhere, and the built-in model in it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import Command

import ldm
from ldm.checkpoint.find import find_model
from ldm.data.scenes import is_held_out

ROOT = Path(__file__).parents[2]
SCRIPT = Path(sys.executable).with_name("ldm")

installed = pytest.mark.skipif(
    not SCRIPT.exists(), reason="ldm is not installed in this environment; `pip install .` makes its console script"
)


def test_the_module_runs_from_a_checkouts_root() -> None:
    done = subprocess.run([sys.executable, "-m", "ldm", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "generate" in done.stdout


@installed
def test_the_console_script_generates_with_the_built_in_model_in_any_folder(tmp_path: Path) -> None:
    command = [SCRIPT, "generate", "a corgi playing a trumpet", "--steps", "4", "--out", "corgi.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    image = Image.open(tmp_path / "corgi.png")
    assert image.size == (64, 64)
    facts = json.loads(image.text["ldm"])
    assert (facts["model"], facts["steps"], facts["ldm_version"]) == ("emoji", 4, ldm.__version__)


@installed
def test_named_configurations_are_installed(tmp_path: Path) -> None:
    command = [SCRIPT, "train-unet", "emoji", "--data", "scenes", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "parameters of the U-Net" in done.stdout


def test_the_same_seeds_make_the_same_images_together_and_alone(here: Command, tmp_path: Path) -> None:
    options = ("generate", "three strawberries", "--steps", 5)
    here(*options, "--seed", 3, "--num", 4, "--out", tmp_path / "together.png")
    together = [np.asarray(Image.open(tmp_path / f"together-{i}.png")).astype(int) for i in range(4)]
    assert all(np.abs(together[0] - other).max() > 50 for other in together[1:])
    for number in range(4):
        out = tmp_path / f"alone-{number}.png"
        here(*options, "--seed", 3 + number, "--num", 1, "--out", out)
        # Matrix products over another batch may round differently, which can move a level by one.
        assert np.abs(np.asarray(Image.open(out)).astype(int) - together[number]).max() <= 1


def test_the_built_in_model_is_small_credited_and_has_not_seen_the_readmes_prompt() -> None:
    folder = find_model("emoji")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size < 40 * 2**20
    card = (folder / "README.md").read_text()
    assert "Twemoji" in card
    assert "CC-BY 4.0" in card
    assert is_held_out("dog", "trumpet")


def test_every_command_of_the_readme_exists(ldm: Command) -> None:
    text = (ROOT / "README.md").read_text()
    commands = set(re.findall(r"(?:^|&& |`)ldm ((?:data )?[a-z-]+)", text, flags=re.MULTILINE))
    assert commands >= {"generate", "train-vae", "train-unet"}
    for command in commands:
        assert ldm(*command.split(), "--help").returncode == 0
