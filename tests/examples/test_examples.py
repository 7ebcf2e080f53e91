"""The examples run as they stand."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_minimal_example_learns_and_writes_images(tmp_path: Path) -> None:
    options = ["--images", "64", "--autoencoder-steps", "30", "--unet-steps", "30", "--batch-size", "8"]
    losses = load("minimal").main([*options, "--out", str(tmp_path / "sheet.png")])
    for stage, values in losses.items():
        assert len(values) == 30
        assert np.mean(values[-10:]) < 0.8 * np.mean(values[:5]), stage
    assert Image.open(tmp_path / "sheet.png").size == (4 * 34 - 2, 2 * 34 - 2)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    nbformat.validate(notebook)
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 4
    assert (tmp_path / "runs" / "quickstart" / "model_index.json").is_file()
