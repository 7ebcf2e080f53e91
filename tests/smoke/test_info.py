"""`ldm info` as a person runs it."""

import json

from running import Command


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
