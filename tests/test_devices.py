"""What a device can compute, with processors of all kinds."""

import warnings

import pytest
import torch

from ldm import devices
from ldm.devices import computes_bfloat16
from ldm.errors import UserNote
from ldm.generation import TextToImage

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"avx2": True}, False),
        ({"avx512_f": True, "avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"sve_bf16": True}, True),
    ],
)
def test_bfloat16_needs_processor_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, known: dict[str, bool], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert computes_bfloat16(CPU) == expected
    assert not computes_bfloat16(torch.device("meta"))


@pytest.mark.parametrize("supported", [True, False])
def test_older_pytorch_is_asked_in_its_own_way(monkeypatch: pytest.MonkeyPatch, supported: bool) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    assert computes_bfloat16(CPU) == (supported and torch.backends.mkldnn.is_available())


@pytest.mark.parametrize(("there", "dtype"), [(False, torch.bfloat16), (True, torch.bfloat16), (False, torch.float32)])
def test_a_model_loaded_in_bfloat16_for_a_processor_without_it_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, there: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(devices, "computes_bfloat16", lambda device: there)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        TextToImage.from_pretrained("emoji", dtype, "cpu")
    notes = [str(each.message) for each in caught if each.category is UserNote]
    assert [note.startswith("this processor has no bfloat16 instructions") for note in notes] == (
        [True] if dtype == torch.bfloat16 and not there else []
    )
