"""Tensors of a single file: safetensors, or a pickle of which nothing is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldm.checkpoint.store import load_tensors
from ldm.errors import UserError

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
SUFFIXES = (".safetensors", *PICKLES)

# What the training framework and numpy leave in a checkpoint besides tensors: loop counters and states of callbacks.
INERT = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|lightning_utilities)(\.\w+)+"
    r"|numpy\.(core|_core)\.multiarray\.(scalar|_reconstruct)|numpy\.(dtype|ndarray)|numpy\.dtypes\.\w+"
)
OLD_INERT = (  # in the format before torch 1.6, which cannot be searched
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, mapped into memory where the file allows it, and the metadata of a safetensors file.

    Raises UserError when the file is missing, damaged or of another kind, or asks for code.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file: give a .safetensors or a .ckpt")
    if path.suffix == ".safetensors":
        return load_tensors(path), _metadata(path)
    if path.suffix in PICKLES:
        return _state_dict(_unpickle(path), path), {}
    raise UserError(f"{path}: a single file ends in {', '.join(SUFFIXES)}")


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no whole safetensors file ({error}): get it anew") from error


class _Inert:
    """Stands for a class of the training framework: made of anything, holds nothing, does nothing."""

    def __new__(cls, *arguments: Any, **named: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _unpickle(path: Path) -> Any:
    """What `torch.save` wrote, without running anything: other classes than tensors become inert ones or are refused."""
    try:
        asked = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        zipped = True
    except Exception:  # not of the newer format, or damaged: the reader below says which
        asked, zipped = list(OLD_INERT), False
    if refused := sorted(name for name in asked if not INERT.fullmatch(name)):
        raise _carries_code(path, refused[0])
    inert = [(_Inert, name) for name in asked]
    try:
        with torch.serialization.safe_globals(inert):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a damaged pickle can raise anything
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise _carries_code(path, found[1]) from None
        line = " ".join(str(error).split())
        raise UserError(f"{path} is no whole checkpoint of torch ({line[:160]}): get it anew") from None


def _carries_code(path: Path, name: str) -> UserError:
    return UserError(f"{path} asks for {name}, which is no part of a model's weights: refused, and nothing was run")


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The weights out of a checkpoint of the training framework, or a plain mapping of names to tensors."""
    found = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path} holds no state_dict: it is no checkpoint of a model")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(f"{path}: {name!r} is no tensor but a {type(tensor).__name__}: it is no state_dict")
    return {name: tensor.detach() for name, tensor in found.items()}
