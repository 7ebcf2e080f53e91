"""Headers of safetensors files: names, shapes and types of tensors, without reading any tensor."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from ldm.errors import UserError
from ldm.storage.store import check_access
from ldm.storage.weights import find_weights, load_places

LONGEST = 100_000_000  # bytes of a header, the limit of the safetensors library
INTEGERS = frozenset(("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"))  # positions and counters
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E5M2": 1, "F8_E4M3": 1}  # of a value; others are not checked


class Header(NamedTuple):
    """Entry of one tensor in a file's header."""

    shape: tuple[int, ...]
    dtype: str  # safetensors' name: F32, BF16, ...

    @property
    def parameters(self) -> int:
        """Number of trained values: none in a tensor of integers."""
        return 0 if self.dtype in INTEGERS else math.prod(self.shape)


def read_headers(path: Path) -> tuple[dict[str, Header], dict[str, str]]:
    """Read the tensors' headers by name and the metadata of a safetensors file.

    Raises:
        UserError: if the file is not safetensors, cut off or damaged.
    """
    check_access(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size - 8 - length
            if not 0 < length <= LONGEST or size < 0:
                raise ValueError(f"its header would have {length} bytes")
            tree = json.loads(file.read(length))
        return _parse(tree, size)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is not a complete safetensors file ({reason}): it is cut off or damaged, download or copy it again"
        ) from None


def _parse(tree: Any, size: int) -> tuple[dict[str, Header], dict[str, str]]:
    """Split a header's JSON into tensors and metadata, and compare it with the bytes of tensors in the file."""
    if not isinstance(tree, dict):
        raise ValueError("its header is not a table of tensors")
    metadata = tree.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise ValueError("its metadata is not a table")
    headers = {name: Header(tuple(entry["shape"]), entry["dtype"]) for name, entry in tree.items()}
    if (end := max((entry["data_offsets"][1] for entry in tree.values()), default=0)) != size:
        raise ValueError(f"its tensors would have {end} bytes, but it holds {size}")
    for name, entry in tree.items():
        start, stop = entry["data_offsets"]
        if headers[name].parameters * BYTES.get(entry["dtype"], 0) not in (0, stop - start):
            raise ValueError(f"{name} of shape {entry['shape']} has {stop - start} bytes")
    return headers, metadata


def read_folder(folder: Path) -> dict[str, Header]:
    """Read the headers of a network's folder, whole or sharded, in one precision; empty without weights."""
    for stem in ("diffusion_pytorch_model", "model"):
        if (path := find_weights(folder, stem)) is not None:
            names = sorted(set(load_places(path).values())) if path.suffix == ".json" else [path.name]
            return {key: header for name in names for key, header in read_headers(folder / name)[0].items()}
    return {}
