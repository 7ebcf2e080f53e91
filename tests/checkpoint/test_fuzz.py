"""Whatever is wrong with a file, reading it ends with one line or with what it says, and takes neither time nor memory.

Seeded mutations: every failure can be had again by its number.
"""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import random_pipeline

from ldm.checkpoint.diffusers.pipeline import load_pipeline, save_pipeline
from ldm.errors import UserError
from ldm.storage import store

STRANGE: list[Any] = [None, True, -1, 0, 1, 3, 2**31, 2**64, 1e30, 1.5, float("nan"), float("inf"), "", "x", "é\u0000"]
STRANGE += [[], [0], [-1], [8], [2**40, 2**40], [8, 16, 32], [[8]], [None, None], ["a", "b"], {}, {"a": 1}]
STRANGE += ["F4", "F8_E8M0", "F8_E4M3", "BF16", "BOOL", "C64", "U64", "I8"]
SIZES = (0, 1, 2**20, 100_000_001, 2**63, 2**64 - 1)  # of a header, as a damaged file may claim them


def mutated_tree(tree: Any, rng: random.Random) -> Any:
    """The tree with one of its values, at any depth, replaced by a strange one or taken away."""
    if not isinstance(tree, dict) or not tree or rng.random() < 0.05:
        return rng.choice(STRANGE)
    name = rng.choice(list(tree))
    if rng.random() < 0.1:
        return {key: value for key, value in tree.items() if key != name}
    return tree | {name: mutated_tree(tree[name], rng)}


def mutated_file(raw: bytes, rng: random.Random) -> bytes:
    """A safetensors file with other bytes, or other values, in its header, or a size that it does not have."""
    end = 8 + struct.unpack("<Q", raw[:8])[0]
    if rng.random() < 0.3:
        damaged = bytearray(raw)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(end)] = rng.randrange(256)
        return bytes(damaged)
    header = json.dumps(mutated_tree(json.loads(raw[8:end]), rng)).encode()
    size = rng.choice(SIZES) if rng.random() < 0.2 else len(header)
    body = raw[end:] if rng.random() < 0.8 else raw[end : end + rng.randrange(len(raw) - end)]
    return struct.pack("<Q", size) + header + body


def test_a_mutated_header_is_one_line_or_whole_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3).half(), "count": torch.tensor(7)}
    store.save_tensors(path, tensors, {"format": "pt"})
    raw, lines = path.read_bytes(), list[str]()
    for seed in range(1000):
        path.write_bytes(mutated_file(raw, random.Random(seed)))
        try:
            for tensor in store.load_tensors(path).values():
                tensor.clone()  # reads all of it
        except UserError as error:
            lines.append(str(error))
    assert 700 < len(lines) < 1000  # most mutations matter, and some do not
    assert not any("\n" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler", "."])
def test_a_mutated_configuration_is_one_line_or_a_pipeline(part: str, tmp_path: Path) -> None:
    save_pipeline(random_pipeline(), tmp_path)
    lines = []
    for path in sorted((tmp_path / part).glob("*.json")):
        text = path.read_text()
        for seed in range(30):
            path.write_text(json.dumps(mutated_tree(json.loads(text), random.Random(seed))))
            try:
                load_pipeline(tmp_path)
            except UserError as error:
                lines.append(str(error))
        path.write_text(text)
    assert len(lines) > 10
    assert not any("\n" in line for line in lines)
    load_pipeline(tmp_path)


def test_weights_of_an_unsupported_dtype_raise_an_error(tmp_path: Path) -> None:
    save_pipeline(random_pipeline(), tmp_path)
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = store.load_tensors(path)
    store.save_tensors(path, tensors | {"conv_in.bias": torch.zeros(8, dtype=torch.int64)})
    with pytest.raises(UserError, match=r"conv_in\.bias .* torch\.int64"):
        load_pipeline(tmp_path)
