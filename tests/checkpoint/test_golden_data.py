"""Models in the original naming give the numbers that the original implementation gave."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from single_files import GOLDEN, GOLDEN_MODELS, golden_arrays, golden_weights, same_networks
from torch import Tensor

from ldm.checkpoint.compvis import SingleFile, read_single_file, write_single_file


@pytest.fixture(scope="module", params=GOLDEN_MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def file(model: str, tmp_path_factory: pytest.TempPathFactory) -> SingleFile:
    path = tmp_path_factory.mktemp(model) / "model.safetensors"
    save_file(golden_weights(model), path)
    return read_single_file(path, GOLDEN / model / "config.yaml")


def relative_error(made: Tensor, expected: Tensor) -> float:
    assert made.shape == expected.shape
    return ((made - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
def outputs(file: SingleFile, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """What we make of the inputs, under the names of the golden outputs."""
    networks, found = file.networks, {}
    autoencoder, scale = networks["autoencoder"], file.contents.autoencoder.scaling_factor
    posterior = autoencoder.encode(arrays["image"])
    if "moments" in arrays:
        found |= {"moments": posterior.moments, "mode": posterior.mode() / scale}
        found["decoded"] = autoencoder.decode(arrays["mode"] * scale)
    else:
        found |= {"pre_quant": posterior.mode() / scale}
        found["indices"] = autoencoder.indices(arrays["pre_quant"] * scale).flatten(1)
        found["quantized"] = autoencoder.lookup(found["indices"].view_as(arrays["pre_quant"][:, 0])) / scale
        found["decoded"] = autoencoder.decode(arrays["pre_quant"] * scale)
    if "token_ids" in arrays:
        found["context"] = networks["text"](arrays["token_ids"], torch.ones_like(arrays["token_ids"])).context
    if "class_labels" in arrays:
        found["context"] = networks["classes"](arrays["class_labels"])
    found["model_output"] = networks["unet"](arrays["x"], arrays["t"], arrays.get("context"))
    return found


def test_every_array_is_the_originals(model: str, file: SingleFile) -> None:
    arrays = golden_arrays(model)
    made = outputs(file, arrays)
    assert made.keys() == arrays.keys() - {"image", "x", "t", "token_ids", "class_labels"}
    if "indices" in arrays:
        assert torch.equal(made.pop("indices"), arrays["indices"])
    errors = {name: relative_error(array, arrays[name]) for name, array in made.items()}
    assert max(errors.values()) <= 1e-5, errors


def test_export_gives_back_every_weight_bit_by_bit(model: str, file: SingleFile, tmp_path: Path) -> None:
    write_single_file(file, tmp_path / "again.safetensors")
    written, original = load_file(tmp_path / "again.safetensors"), golden_weights(model)
    assert written.keys() == original.keys()
    assert all(torch.equal(written[name], weight) for name, weight in original.items())


def test_an_exported_file_needs_no_configuration(file: SingleFile, tmp_path: Path) -> None:
    write_single_file(file, tmp_path / "again.safetensors")
    assert same_networks(read_single_file(tmp_path / "again.safetensors"), file)
