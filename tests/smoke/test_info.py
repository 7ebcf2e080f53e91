"""`ldm info` as a person runs it."""

import json
from pathlib import Path

import pytest
from nursery import Nursery
from running import Command
from tiny_models import random_parts

from ldm.checkpoint.diffusers import load_autoencoder, save_autoencoder


def test_json_is_one_document_of_raw_integers(here: Command) -> None:
    facts = json.loads(here("info", "published/celebahq-ldm-vq-4", "--json").stdout)
    assert facts["parameters"]["unet"]["total"] == 274_056_163
    assert facts["latents"] == [3, 64, 64]
    assert facts["training"]["max_steps"] == 410_000
    assert all(isinstance(count, int) for count in facts["flops"].values())


def test_what_a_person_can_mend_is_one_line_and_status_2(here: Command) -> None:
    done = here("info", "emoji", "--write", check=False)
    assert done.returncode == 2
    assert (done.stdout, done.stderr) == ("", "ldm: --write and --pictures belong to --measure DATA\n")


@pytest.mark.slow
def test_two_processes_measure_what_one_does_and_write_it_once(tmp_path: Path) -> None:
    nursery, found = Nursery(), {}
    try:
        for processes in (1, 2):
            folder, said = tmp_path / str(processes), tmp_path / f"{processes}.json"
            save_autoencoder(random_parts().autoencoder, folder)
            words = ["info", folder, "--measure", "scenes", "--pictures", 33, "--write", "--json"]
            assert not any(nursery.run(words, said, processes)), said.read_text()
            text = said.read_text()  # with what went to standard error
            assert text.count('"measured"') == 1
            found[processes] = json.JSONDecoder().raw_decode(text, text.index("{\n"))[0]["measured"]
            assert load_autoencoder(folder).config.scaling_factor == found[processes]["after"]["scaling_factor"]
    finally:
        nursery.close()
    for name in ("mean", "std"):
        assert found[2][name] == pytest.approx(found[1][name], rel=1e-5)
