"""`ldm bench` on the command line."""

import json

import pytest
from running import Command

from ldm.bench import machine, rows
from ldm.bench.workload import Workload
from ldm.cli import bench


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the table by one free row, and the measured peaks by constants."""
    rates = dict.fromkeys(machine.TYPES.values(), 1e9)
    monkeypatch.setattr(machine, "measure_peaks", lambda device: machine.Peaks(rates, rates))

    def maker(against: bool) -> Workload:
        return Workload(ours=lambda: None, theirs=(lambda: None) if against else None, flops=1)

    monkeypatch.setattr(rows, "ROWS", {"nothing": maker})


@pytest.mark.slow
@pytest.mark.usefixtures("known")
def test_json_is_a_list_of_rows_and_alone_has_no_columns_of_diffusers(here: Command) -> None:
    [beside] = json.loads(here("bench", "--against", "diffusers", "--json").stdout)
    [alone] = json.loads(here("bench", "--only", "nothing", "--runs", 2, "--json").stdout)
    assert beside.keys() - alone.keys() == {"theirs_ms", "ratio", "theirs_peak_mib"}
    assert (beside["runs"], alone["runs"]) == (7, 2)


@pytest.mark.usefixtures("known")
def test_a_table_names_the_machine_its_peaks_and_the_rows(here: Command) -> None:
    done = here("bench")
    assert "1 matrix, 1 3x3 convolution" in done.stdout
    assert "nothing" in done.stdout
    assert "diffusers" not in done.stdout
    assert "1 of 1: nothing" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--against", "keras"), "--against keras: only diffusers is supported"),
        (("--only", "cold-strat"), "did you mean cold-start"),
        (("--plot", "x.png", "--json"), "remove --against, --only and --json"),
        (("--plot", "/nowhere/x.png"), "cannot write to /nowhere"),
    ],
)
def test_a_user_error_is_one_line_and_status_2(here: Command, words: tuple[str, ...], message: str) -> None:
    done = here("bench", *words, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_comparison_needs_diffusers_installed(here: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    done = here("bench", "--against", "diffusers", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "it is not installed; pip install diffusers" in done.stderr
