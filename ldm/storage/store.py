"""Atomic files: tensors as safetensors, everything else as JSON, never a pickle."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ldm.errors import UserError


def write(path: Path, fill: Callable[[Path], object]) -> None:
    """Write a file atomically: `fill` writes a temporary file, which is flushed to the disk and renamed to `path`.

    Its permissions follow the umask; safetensors would let only the owner read its files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        work.touch()
        mode = stat.S_IMODE(work.stat().st_mode)
        fill(work)
        work.chmod(mode)
        flush(work)
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)
    flush(path.parent)


def check_access(path: Path) -> None:
    """Check the permission to read a file, which libraries report as a damaged file.

    Raises:
        UserError: if there is none.
    """
    if path.exists() and not os.access(path, os.R_OK):
        mode, owner = stat.filemode(path.stat().st_mode), path.stat().st_uid
        raise UserError(f"no permission to read {path} ({mode}, user {owner}): its owner can allow it with chmod a+r")


def save_json(path: Path, content: Any) -> None:
    """Write plain values as JSON."""
    save_text(path, json.dumps(content, indent=2) + "\n")


def save_text(path: Path, text: str) -> None:
    """Write a text file."""
    write(path, lambda work: work.write_text(text, encoding="utf-8"))


def load_text(path: Path) -> str:
    """Read a text file.

    Raises:
        UserError: if it is missing or not text.
    """
    check_access(path)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the checkpoint is incomplete") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def load_json(path: Path) -> Any:
    """Read plain values from JSON.

    Raises:
        UserError: if the file is missing or not JSON.
    """
    try:
        return json.loads(load_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}): it is damaged, download or copy it again") from error


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors by name as one safetensors file; tensors that share memory are written separately.

    Raises:
        OSError: if the disk is full or not writable.
    """
    whole: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        whole[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    try:
        write(path, lambda work: save_file(whole, work, metadata))
    except SafetensorError as error:  # "Error while serializing: I/O error: No space left on device (os error 28)"
        raise OSError(errno.EIO, str(error).rsplit("I/O error: ", 1)[-1], str(path)) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, mapped into memory.

    Raises:
        UserError: if it is missing, cut off or damaged.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: the checkpoint is incomplete")
    check_access(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a complete safetensors file ({error}): it is cut off or damaged, download or copy it again"
        ) from error


def load_metadata(path: Path) -> dict[str, str]:
    """Read the metadata in the header of a safetensors file."""
    check_access(path)
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def save_tree(folder: Path, tree: Any) -> None:
    """Write nested dicts, lists and tuples of tensors and plain values, such as an optimizer's `state_dict()`.

    The folder has `tensors.safetensors` and `tree.json`, which holds the structure and the name of each tensor.
    """
    tensors: dict[str, Tensor] = {}
    structure = _encode(tree, tensors)
    save_tensors(folder / "tensors.safetensors", tensors)
    save_json(folder / "tree.json", structure)


def load_tree(folder: Path) -> Any:
    """Read a tree that `save_tree` wrote.

    Raises:
        UserError: if it is missing or damaged.
    """
    structure = load_json(folder / "tree.json")
    tensors = load_tensors(folder / "tensors.safetensors")
    try:
        return _decode(structure, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} is damaged ({error!r}): use another step") from error


def _encode(node: Any, tensors: dict[str, Tensor]) -> Any:
    """Convert a node to JSON: plain values stay, others become {kind: content}; a dict becomes pairs."""
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if isinstance(node, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = node
        return {"tensor": name}
    if isinstance(node, dict):
        return {"dict": [[_encode(key, tensors), _encode(value, tensors)] for key, value in node.items()]}
    if isinstance(node, list | tuple):
        kind = "list" if isinstance(node, list) else "tuple"
        return {kind: [_encode(value, tensors) for value in node]}
    raise TypeError(f"a {type(node).__name__} cannot be saved in a tree of tensors and plain values")


def _decode(node: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    [(kind, content)] = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {_decode(key, tensors): _decode(value, tensors) for key, value in content}
    values = [_decode(value, tensors) for value in content]
    return values if kind == "list" else tuple(values)


def flush(path: Path) -> None:
    """Flush a file, or the renames in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
