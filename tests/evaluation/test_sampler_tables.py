"""The script that measures tables of samplers, on a tiny pipeline."""

import argparse
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from blots import Blots, blot_features
from tiny_pipelines import ZERO_SNR_V, V, bert

from ldm.config.diffusion import DiffusionConfig
from ldm.evaluation.distances import FeatureSet, fid
from ldm.evaluation.reading import as_tensor
from ldm.generation import TextToImage


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).parents[2] / "docs" / "scripts" / "sampler_tables.py"
    spec = importlib.util.spec_from_file_location("sampler_tables", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sampler_tables", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "open_indexed", lambda *arguments: Blots())
    monkeypatch.setattr(module, "make_features", lambda name: blot_features())
    return module


def options(script: ModuleType, folder: Path, study: str, *words: str) -> argparse.Namespace:
    places = [f"--{name}={folder / name}" for name in ("model", "results", "table", "statistics")]
    sizes = ["--samples=4", "--images=4", "--batch-size=3", "--calls=2"]
    return script.parser().parse_args([study, *places, *sizes, *words])


@pytest.mark.slow
def test_the_table_is_measured_cell_by_cell_and_resumed(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = TextToImage(bert())
    pipe.save_pretrained(tmp_path / "model")
    script.run(options(script, tmp_path, "ddim", "--seeds=1"))
    found = script.Results(tmp_path / "results").read()
    assert len(found) == 5
    assert len({values["fid"] for values in found.values()}) == 5

    cell = next(cell for cell in found if cell.row == "eta 0.5")
    captions = [f"a dog {number}" for number in range(4)]
    generated = pipe(captions, guidance_scale=1, num_inference_steps=2, eta=0.5, seed=0)
    features = blot_features()
    images = np.stack([np.asarray(image) for image in generated]), Blots().images[:4]
    both = [features(as_tensor(each)) for each in images]
    assert found[cell]["fid"] == pytest.approx(fid(*map(FeatureSet, both))["fid"], rel=1e-3)

    measured = []
    real = script.measure
    monkeypatch.setattr(script, "measure", lambda pipe, cell, *more: measured.append(cell) or real(pipe, cell, *more))
    script.run(options(script, tmp_path, "ddim", "--seeds=2"))
    assert [cell.seed for cell in measured] == [1] * 5
    assert {cell.request(captions, 3, False).seed for cell in measured} == {4}
    lines = (tmp_path / "table").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| sigma-hat")]
    assert len(rows) == 2  # FID and KID
    assert rows[0].count("±") == rows[0].count("(2)") == 1


def test_no_caption_is_used_twice_before_each_was_used_once(script: ModuleType) -> None:
    first = [f"a dog {number}" for number in range(12)]
    assert script.distinct_captions(Blots(), 12) == first
    assert script.distinct_captions(Blots(), 15) == [*first, "a cat", *first[:2]]


@pytest.mark.slow
@pytest.mark.parametrize("diffusion", [V, ZERO_SNR_V])
def test_the_rows_of_a_column_take_equally_many_network_calls(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, diffusion: DiffusionConfig
) -> None:
    pipe, calls = TextToImage(replace(bert(), diffusion=diffusion)), []
    zero_signal = diffusion is ZERO_SNR_V
    denoise = pipe.pipeline.denoiser.denoise
    monkeypatch.setattr(pipe.pipeline.denoiser, "denoise", lambda *given: calls.append(1) or denoise(*given))
    for row, way in script.STUDIES["few"].rows.items():
        cell = script.Cell("few", "tiny", "float32", 1, 4, None, 6, row, 0)
        calls.clear()
        list(pipe.generate(pipe.resolve(cell.request(["a dog"], 1, zero_signal))))
        assert len(calls) == (5 if way.sampler == "heun" and not zero_signal else 6), row


def test_unknown_rows_raise_an_error(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(script.UserError, match="no row 'ddmi': there are 'ddim'"):
        script.run(options(script, tmp_path, "few", "--rows", "ddmi"))
