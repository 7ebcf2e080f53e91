"""The script that measures the DDIM paper's table, on a tiny pipeline."""

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from blots import Blots, blot_features
from tiny_pipelines import bert

from ldm.evaluation.distances import FeatureSet, fid
from ldm.evaluation.reading import as_tensor
from ldm.pipeline import TextToImage


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).parents[2] / "docs" / "ddim_table.py"
    spec = importlib.util.spec_from_file_location("ddim_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ddim_table", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "open_indexed", lambda *arguments: Blots())
    monkeypatch.setattr(module, "make_features", lambda name: blot_features())
    return module


def options(script: ModuleType, folder: Path, *words: str) -> argparse.Namespace:
    places = [f"--{name}={folder / name}" for name in ("model", "results", "table", "statistics")]
    sizes = ["--samples=4", "--pictures=4", "--batch-size=3", "--steps=2"]
    return script.parser().parse_args([*places, *sizes, *words])


def test_the_table_is_measured_cell_by_cell_and_taken_up_again(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = TextToImage(bert())
    pipe.save_pretrained(tmp_path / "model")
    script.run(options(script, tmp_path, "--seeds=1"))
    found = script.Results(tmp_path / "results").read()
    assert len(found) == 5
    assert len({values["fid"] for values in found.values()}) == 5

    cell = next(cell for cell in found if cell.noise == "0.5")
    captions = [f"a dog {number}" for number in range(4)]
    drawn = pipe(captions, guidance_scale=1, num_inference_steps=2, eta=0.5, seed=0)
    features = blot_features()
    pictures = np.stack([np.asarray(picture) for picture in drawn]), Blots().pictures[:4]
    both = [features(as_tensor(each)) for each in pictures]
    assert found[cell]["fid"] == pytest.approx(fid(*map(FeatureSet, both))["fid"], rel=1e-3)

    measured = []
    real = script.measure
    monkeypatch.setattr(script, "measure", lambda pipe, cell, *more: measured.append(cell) or real(pipe, cell, *more))
    script.run(options(script, tmp_path, "--seeds=2"))
    assert [cell.seed for cell in measured] == [1] * 5
    assert {cell.request(captions, 3).seed for cell in measured} == {4}
    lines = (tmp_path / "table").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| sigma-hat")]
    assert len(rows) == 2  # FID and KID
    assert rows[0].count("±") == rows[0].count("(2)") == 1


def test_no_caption_is_drawn_twice_before_each_was_drawn_once(script: ModuleType) -> None:
    first = [f"a dog {number}" for number in range(12)]
    assert script.distinct_captions(Blots(), 12) == first
    assert script.distinct_captions(Blots(), 15) == [*first, "a cat", *first[:2]]
