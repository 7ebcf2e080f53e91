"""What lies in files of weights, from their headers alone: no tensor is read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from ldm.checkpoint.fields import load_fields
from ldm.errors import UserError

INTEGERS = ("I", "U", "B")  # of safetensors' names of types: positions and counters, which nobody trained


class Header(NamedTuple):
    """What a file's header says of one tensor."""

    shape: tuple[int, ...]
    dtype: str  # in safetensors' words: F32, BF16, ...

    @property
    def parameters(self) -> int:
        """Numbers that were trained: none in a tensor of integers."""
        is_integer = self.dtype.startswith(INTEGERS) and self.dtype != "BF16"
        return 0 if is_integer else math.prod(self.shape)


def read_headers(path: Path) -> tuple[dict[str, Header], dict[str, str]]:
    """Tensors by name and the metadata of a safetensors file; UserError when it is none, cut off or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            headers = {name: Header(tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
            return headers, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is no whole safetensors file ({error}): it is cut off or damaged, get it anew"
        ) from error


def read_folder(folder: Path) -> dict[str, Header]:
    """Tensors of a network's folder, whole or in shards; of one precision, where there are several; {}: no weights."""
    stems = ("diffusion_pytorch_model", "model")
    for variant in ("", ".fp16", ".bf16"):
        for stem in stems:
            whole = folder / f"{stem}{variant}.safetensors"
            if whole.is_file():
                return read_headers(whole)[0]
            for index in (f"{stem}{variant}.safetensors.index.json", f"{stem}.safetensors.index{variant}.json"):
                if (folder / index).is_file():
                    return _read_shards(folder / index)
    return {}


def _read_shards(index: Path) -> dict[str, Header]:
    places = load_fields(index).get("weight_map")
    if not isinstance(places, dict):
        raise UserError(f"{index} has no weight_map: it is damaged, get it anew")
    headers: dict[str, Header] = {}
    for name in sorted(set(places.values())):
        headers |= read_headers(index.parent / name)[0]
    return headers
