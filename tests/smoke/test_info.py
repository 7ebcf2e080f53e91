"""`ldm info` on the command line."""

import json
from pathlib import Path

import pytest
from running import Command
from tiny_models import random_pipeline

from ldm.models.autoencoder.autoencoder import Autoencoder


def test_json_is_one_document_of_raw_integers(here: Command) -> None:
    facts = json.loads(here("info", "published/celebahq-ldm-vq-4", "--json").stdout)
    assert facts["parameters"]["unet"]["total"] == 274_056_163
    assert facts["latents"] == [3, 64, 64]
    assert facts["training"]["max_steps"] == 410_000
    assert all(isinstance(count, int) for count in facts["flops"].values())


def test_a_user_error_is_one_line_and_status_2(here: Command) -> None:
    done = here("info", "emoji", "--write", check=False)
    assert done.returncode == 2
    assert (done.stdout, done.stderr) == ("", "ldm: --write and --images need --measure DATA\n")


@pytest.mark.slow
def test_two_processes_measure_the_same_statistics_as_one(ldm: Command, tmp_path: Path) -> None:
    found = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        random_pipeline().autoencoder.save_pretrained(folder)
        words = ["info", folder, "--measure", "scenes", "--images", 33, "--write", "--json"]
        found[processes] = json.loads(ldm(*words, processes=processes).stdout)["measured"]
        assert Autoencoder.from_pretrained(folder).config.scaling_factor == found[processes]["after"]["scaling_factor"]
    for name in ("mean", "std"):
        assert found[2][name] == pytest.approx(found[1][name], rel=1e-5)
