"""Measurement of workloads with known results."""

import json
import math
import time

import pytest
import torch
from torch import Tensor

from ldm.bench import runner
from ldm.bench.machine import Peaks, measure_peaks
from ldm.bench.memory import with_peak
from ldm.bench.runner import Row, measure, relative_error
from ldm.bench.workload import Run, Workload
from ldm.devices import computes_bfloat16

CPU = torch.device("cpu")
RATES = {torch.float32: 2e9, torch.bfloat16: 4e9}
PEAKS = Peaks(RATES, {dtype: rate / 2 for dtype, rate in RATES.items()})


def noted(calls: list[str], name: str, output: Tensor | None = None) -> Run:
    def run() -> Tensor | None:
        calls.append(name)
        return output

    return run


def test_sides_take_turns_in_each_counted_run() -> None:
    calls: list[str] = []
    workload = Workload(**{side: noted(calls, side) for side in ("theirs", "ours", "tuned")})
    row = measure("x", workload, 3, PEAKS, CPU)
    turns = ["ours", "theirs", "tuned"]
    assert calls == 4 * turns  # the first warms up
    assert {side: len(times) for side, times in row.seconds.items()} == dict.fromkeys(turns, 3)


@pytest.mark.slow
def test_the_process_is_set_up_for_each_run_and_long_rows_have_fewer_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[str] = []
    workload = Workload(ours=lambda: None, theirs=lambda: None)
    monkeypatch.setattr(runner, "LONG", 0.0)
    assert measure("x", workload, None, PEAKS, CPU, sides.append).as_dict()["runs"] == 3
    assert sides == 4 * ["ours", "theirs"]
    monkeypatch.setattr(runner, "LONG", 60.0)
    assert measure("x", workload, None, PEAKS, CPU).as_dict()["runs"] == 7


@pytest.mark.slow
def test_errors_are_relative_to_diffusers_in_float32_or_else_to_our_plain_path() -> None:
    exact, near = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])
    calls: list[str] = []
    sides = {"ours": near, "theirs_bf16": exact + 5, "theirs": exact}
    runs = {side: noted(calls, side, output) for side, output in sides.items()}
    row = measure("x", Workload(**runs), 1, PEAKS, CPU)
    assert row.errors == {"ours": pytest.approx(0.1), "theirs": 0, "theirs_bf16": pytest.approx(math.sqrt(2))}
    alone = measure("x", Workload(ours=runs["ours"], plain=noted(calls, "plain", exact)), 1, PEAKS, CPU)
    assert alone.errors == {"ours": pytest.approx(0.1)}
    assert relative_error(None, exact) is relative_error(exact, None) is None


def test_tiles_are_compared_and_their_memory_measured_but_not_their_time() -> None:
    exact = torch.ones(2)
    calls: list[str] = []
    sides = {"ours": exact, "theirs": exact, "tiled": 1.5 * exact}
    workload = Workload(**{side: noted(calls, side, output) for side, output in sides.items()})
    facts = measure("x", workload, 2, PEAKS, CPU).as_dict()
    assert calls.count("tiled") == 1
    assert facts["tiled_error"] == 0.5
    assert "tiled_peak_mib" in facts
    assert "tiled_ms" not in facts


def row(**seconds: list[float]) -> Row:
    return Row(
        "x", seconds, dict.fromkeys(seconds, 0.5), dict.fromkeys(seconds, 2**21), flops=10**9, images=None, peak=2e9
    )


def test_json_has_medians_ratios_and_the_share_of_the_peak_in_the_precision_of_ours() -> None:
    facts = row(ours=[1.0, 1.0, 9.0], theirs=[2.0, 3.0, 1.0], tuned=[0.5] * 3, theirs_bf16=[4.0] * 3).as_dict()
    assert json.loads(json.dumps(facts)) == {
        "name": "x",
        "ours_ms": 1000,
        "theirs_ms": 2000,
        "tuned_ms": 500,
        "theirs_bf16_ms": 4000,
        "ratio": 2,
        "tuned_ratio": 0.5,
        "theirs_bf16_ratio": 4,
        "error": 0.5,
        "tuned_error": 0.5,
        "theirs_bf16_error": 0.5,
        "share_of_peak": 0.5,
        "ours_peak_mib": 2,
        "theirs_peak_mib": 2,
        "tuned_peak_mib": 2,
        "theirs_bf16_peak_mib": 2,
        "runs": 3,
    }
    low = measure("x", Workload(ours=lambda: None, flops=1, dtype=torch.bfloat16), 1, PEAKS, CPU)
    assert low.peak == 4e9


def test_without_diffusers_its_columns_are_absent() -> None:
    assert row(ours=[1.0]).as_dict().keys() == {
        "name",
        "ours_ms",
        "error",
        "share_of_peak",
        "ours_peak_mib",
        "runs",
    }


def test_times_contain_the_whole_work() -> None:
    workload = Workload(ours=lambda: time.sleep(0.01), theirs=lambda: time.sleep(0.03))
    facts = measure("x", workload, 3, PEAKS, CPU).as_dict()
    assert facts["ours_ms"] >= 10
    assert facts["theirs_ms"] >= 30
    assert facts["error"] is facts["share_of_peak"] is None


def test_memory_of_a_run_is_its_peak_even_if_freed_memory_could_be_reused() -> None:
    def take() -> None:
        torch.ones(16 * 2**20)  # 64 MiB

    for _ in range(2):
        taken = with_peak(take, CPU)[1]
        assert taken is not None
        assert 0.9 < taken / 2**26 < 1.5


def test_peaks_are_plausible() -> None:
    peaks = measure_peaks(CPU, repeats=1)
    assert list(peaks.matrix) == [torch.float32, torch.bfloat16][: 1 + computes_bfloat16(CPU)]
    for dtype in peaks.matrix:
        assert 1e8 < peaks.matrix[dtype] < 1e14
        assert peaks.of(dtype) == max(peaks.matrix[dtype], peaks.convolution[dtype])
