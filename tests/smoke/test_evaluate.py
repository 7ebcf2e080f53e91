"""`ldm evaluate` and `ldm reconstruct` on the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import Command

OPTIONS = ("--samples", 12, "--steps", 2, "--features", "efficientnet-lite0", "--concepts", 40)


@pytest.mark.slow
def test_a_report_has_all_results_and_settings(ldm: Command, tiny_pipeline: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    names = "fid,kid,precision,rfid,psnr,ssim,neighbours"
    ldm("evaluate", "--model", tiny_pipeline, *OPTIONS, "--metrics", names, "--out", report)
    found = json.loads(report.read_text())
    expected = {"fid", "kid", "precision", "recall", "rfid", "psnr", "ssim"}
    assert expected <= found["results"].keys()
    assert all(np.isfinite(value) for value in found["results"].values())
    assert found["settings"]["samples"] == 12
    assert found["settings"]["comparable_with_published_fid"] is False
    assert Image.open(tmp_path / "report.png").width > 7 * 32


@pytest.mark.slow
def test_a_run_of_an_autoencoder_is_measured(ldm: Command, tiny_vae: Path) -> None:
    words = ("--metrics", "psnr,ssim", "--samples", 12, "--concepts", 40, "--json")
    found = json.loads(ldm("evaluate", "--model", tiny_vae, *words).stdout)
    assert 0 < found["results"]["psnr"] < 60
    assert found["settings"]["samples"] == 12
    assert found["split"] == "test"


@pytest.mark.slow
def test_two_processes_have_the_results_of_one_and_use_its_statistics(
    ldm: Command, tiny_pipeline: Path, tmp_path: Path
) -> None:
    statistics = tmp_path / "data.safetensors"
    reports = []
    for processes, more in ((2, ("--statistics", statistics)), (1, ("--statistics", statistics)), (2, ())):
        report = tmp_path / f"report-{len(reports)}.json"
        words = ("evaluate", "--model", tiny_pipeline, *OPTIONS, "--metrics", "fid,rfid,psnr", *more, "--out", report)
        ldm(*words, processes=processes)
        reports.append(json.loads(report.read_text()))
    assert [found["settings"]["statistics_reused"] for found in reports] == [False, True, False]
    assert [found["settings"]["processes"] for found in reports] == [2, 1, 2]
    for found in reports[1:]:
        assert found["results"] == pytest.approx(reports[0]["results"], rel=1e-3)


def test_invalid_combinations_raise_an_error_of_one_line(here: Command, tmp_path: Path) -> None:
    for options, words in (
        (("--metrics", "beauty"), "choose from fid"),
        (("--metrics", "clip"), "--clip"),
        (("--metrics", "neighbours"), "--out"),
        (("--metrics", "psnr", "--clip", "x"), "add clip"),
        (("--data", "images/", "--concepts", 3), "works with --data scenes only"),
        (("--data", "images/", "--split", "train"), "works with --data scenes only"),
        (("--metrics", "psnr", "--split", "all"), "train or test"),
        (("--metrics", "psnr", "--steps", 3), "sampling (--cfg"),
        (("--metrics", "psnr", "--out", tmp_path / "nowhere" / "report.json"), "is not a folder"),
        (("--metrics", "fid", "--features", "vgg"), "choose inception"),
        (("--metrics", "psnr", "--samples", 1), "at least 2"),
        (("--metrics", "scenes", "--concepts", 100), "knows the first 80"),
    ):
        done = here("evaluate", *options, check=False)
        assert done.returncode == 2
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_reconstructions_are_written_and_measured(here: Command, tmp_path: Path) -> None:
    image = tmp_path / "flat.png"
    Image.new("RGB", (70, 66), "red").save(image)
    done = here("reconstruct", image, "--out", tmp_path / "back")
    assert Image.open(tmp_path / "back" / "flat.png").size == (68, 64)
    assert "psnr" in done.stdout
    assert "ssim" in done.stdout
    here("reconstruct", image, "--tile", 64, "--out", tmp_path / "tiles")
    assert Image.open(tmp_path / "tiles" / "flat.png").size == (68, 64)
    done = here("reconstruct", image, "--tile", 66, "--out", tmp_path / "tiles", check=False)
    assert done.returncode == 2
    assert "tile is 66: with this autoencoder it must be a multiple of 4 and at least 64 pixels" in done.stderr
    done = here("reconstruct", tmp_path / "nothing.png", check=False)
    assert done.returncode == 2


def test_options_that_interpolation_does_not_use_raise_an_error(here: Command, tmp_path: Path) -> None:
    for options, words in (
        (("a.png", "b.png", "--cfg", 2), "without guidance"),
        (("3", "4", "--prompt", "a dog", "--seed", 1), "is for two prompts: leave it out for seeds"),
        (("a.png", "a dog"), "two images"),
    ):
        done = here("interpolate", *options, "--out", tmp_path / "x.gif", check=False)
        assert done.returncode == 2
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
