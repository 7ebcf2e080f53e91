"""Tensors of a single file: safetensors, or a pickle of which nothing is run."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldm.errors import UserError
from ldm.storage.store import load_tensors

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
SUFFIXES = (".safetensors", *PICKLES)

# What the training framework and numpy leave in a checkpoint besides tensors: loop counters and states of callbacks.
FRAMEWORK = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|lightning_utilities)(\.\w+)+"
    r"|numpy\.(core|_core)\.multiarray\.(scalar|_reconstruct)|numpy\.(dtype|ndarray)|numpy\.dtypes\.\w+"
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
    """What `torch.save` wrote, without running anything: classes other than tensors are inert or refused."""
    try:
        asked = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        zipped = True
    except Exception:  # of the format before torch 1.6, which cannot be searched, or damaged: loading will tell
        asked, zipped = set(), False
    while True:
        if refused := sorted(name for name in asked if not FRAMEWORK.fullmatch(name)):
            raise UserError(
                f"{path} asks for {refused[0]}, which is no part of a model's weights: refused, and nothing was run"
            )
        try:
            return _load(path, asked, zipped)
        except Exception as error:  # a damaged pickle can raise anything
            found = re.search(r"GLOBAL (\S+)", str(error))
            if found is None or found[1] in asked:
                reason = " ".join(str(error).partition("error:")[2].partition("Check the doc")[0].split())
                raise UserError(
                    f"{path} is no whole checkpoint of torch ({reason or type(error).__name__}): get it anew"
                ) from None
            asked.add(found[1])


def _load(path: Path, asked: set[str], zipped: bool) -> Any:
    stand_ins = [(OrderedDict if name.endswith(".AttributeDict") else _Inert, name) for name in asked]
    with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickles that torch did not write
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The weights out of a checkpoint of the training framework, or a plain mapping of names to tensors."""
    found = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path} holds no state_dict: it is no checkpoint of a model")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(f"{path}: {name!r} is no tensor but a {type(tensor).__name__}: it is no state_dict")
    return {name: tensor.detach() for name, tensor in found.items()}
