"""What lies in files of weights, from their headers alone: no tensor is read, and none is mapped into memory."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from ldm.errors import UserError
from ldm.storage.weights import find_weights, load_places

LONGEST = 100_000_000  # bytes of a header, the limit of the safetensors library
# Positions and counters, which nobody trained.
INTEGERS = frozenset(("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"))
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E5M2": 1, "F8_E4M3": 1}  # of a number; other types go unchecked


class Header(NamedTuple):
    """What a file's header says of one tensor."""

    shape: tuple[int, ...]
    dtype: str  # in safetensors' words: F32, BF16, ...

    @property
    def parameters(self) -> int:
        """Numbers that were trained: none in a tensor of integers."""
        return 0 if self.dtype in INTEGERS else math.prod(self.shape)


def read_headers(path: Path) -> tuple[dict[str, Header], dict[str, str]]:
    """Tensors by name and the metadata of a safetensors file; UserError when it is none, cut off or damaged."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            room = path.stat().st_size - 8 - length
            if not 0 < length <= LONGEST or room < 0:
                raise ValueError(f"its header would have {length} bytes")
            tree = json.loads(file.read(length))
        if not isinstance(tree, dict):
            raise ValueError("its header is no table of tensors")
        metadata = tree.pop("__metadata__", {})
        if not isinstance(metadata, dict):
            raise ValueError("its metadata are no table")
        headers = {name: Header(tuple(found["shape"]), found["dtype"]) for name, found in tree.items()}
        if (end := _end(tree)) != room:
            raise ValueError(f"its tensors would have {end} bytes, it holds {room}")
        for name, found in tree.items():
            first, last = found["data_offsets"]
            if headers[name].parameters * BYTES.get(found["dtype"], 0) not in (0, last - first):
                raise ValueError(f"{name} of shape {found['shape']} has {last - first} bytes")
        return headers, metadata
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is no whole safetensors file ({reason}): it is cut off or damaged, get it anew"
        ) from None


def _end(tree: dict[str, Any]) -> int:
    return max((found["data_offsets"][1] for found in tree.values()), default=0)


def read_folder(folder: Path) -> dict[str, Header]:
    """Tensors of a network's folder, whole or in shards; of one precision, where there are several; {}: no weights."""
    for stem in ("diffusion_pytorch_model", "model"):
        found = find_weights(folder, stem)
        if found is not None:
            return _read_shards(found) if found.suffix == ".json" else read_headers(found)[0]
    return {}


def _read_shards(index: Path) -> dict[str, Header]:
    headers: dict[str, Header] = {}
    for name in sorted(set(load_places(index).values())):
        headers |= read_headers(index.parent / name)[0]
    return headers
