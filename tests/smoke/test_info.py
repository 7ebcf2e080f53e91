"""`ldm info` as a person runs it."""

import json

import pytest
from running import Command


def test_json_is_one_document_of_raw_integers(ldm: Command) -> None:
    facts = json.loads(ldm("info", "published/celebahq-ldm-vq-4", "--json").stdout)
    assert facts["parameters"]["unet"]["total"] == 274_056_163
    assert facts["latents"] == [3, 64, 64]
    assert facts["training"]["max_steps"] == 410_000
    assert all(isinstance(count, int) for count in facts["flops"].values())


def test_the_built_in_model_is_described_in_lines_that_fit_a_terminal(ldm: Command) -> None:
    lines = ldm("info", "emoji").stdout.splitlines()
    assert lines[0] == "emoji: a pipeline"
    assert any(line.startswith("latents") and "4x16x16, scaling factor" in line for line in lines)
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nothing-like-it",), "nothing to tell of 'nothing-like-it'"),
        (("emoji", "--write"), "--write and --pictures belong to --measure DATA"),
        (("tiny", "--measure", "scenes"), "--measure needs the folder of an autoencoder, not the configuration tiny"),
    ],
)
def test_what_a_person_can_mend_is_one_line_and_status_2(ldm: Command, words: tuple[str, ...], message: str) -> None:
    done = ldm("info", *words, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
