"""Costs in the report of `ldm info`, and the time and memory that the report itself takes."""

import json
import subprocess
import sys

import pytest
from running import PEAK

from ldm import config
from ldm.info.describe import of_config
from ldm.info.report import report


@pytest.mark.parametrize("adversarial", [0.0, 0.5])
def test_memory_of_training_counts_trained_parameters_five_times_and_frozen_ones_once(adversarial: float) -> None:
    loaded = config.load("tiny", ["text.frozen=true", f"loss.adversarial.weight={adversarial}"])
    facts = report(of_config("tiny", loaded))
    counts = {name: part["total"] for name, part in facts["parameters"].items() if name != "total"}
    frozen = counts["autoencoder"] + counts["text"]
    assert facts["memory"]["training"]["unet"] == 20 * counts["unet"] + 4 * frozen
    discriminator = 2_764_737 + 896 if adversarial else 0  # Isola et al. 2017: convolutions, then batch normalization
    assert facts["memory"]["training"]["autoencoder"] == 20 * (counts["autoencoder"] + discriminator)


PROBE = """
import json, time
from ldm.info.describe import describe
from ldm.info.report import report
report(describe("tiny"))  # imports what torch's meta device imports when it first computes
before = peak()
start = time.process_time()
facts = report(describe("published/txt2img-1p4B"))
seconds = time.process_time() - start
grown = peak() - before
print(json.dumps({"parameters": facts["parameters"]["total"], "seconds": seconds, "grown": grown}))
"""


def test_a_model_of_1_45_billion_parameters_is_described_within_a_second_and_without_their_memory() -> None:
    """In the time of this process, which other work on the machine does not change."""
    done = subprocess.run([sys.executable, "-c", PEAK + PROBE], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["parameters"] == 872_300_484 + 581_994_042 + 83_653_863
    assert found["seconds"] < 1.0
    assert found["grown"] < 2**26  # bytes; the weights would be 6e9
