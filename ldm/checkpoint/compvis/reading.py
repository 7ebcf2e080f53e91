"""Read the tensors of a single file: safetensors, or a pickle, without running any code of it."""

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
from ldm.storage.store import check_access, load_tensors

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
SUFFIXES = (".safetensors", *PICKLES)

# Classes of Lightning, numpy and OmegaConf in checkpoints: loop counters, states of callbacks, hyperparameters.
FRAMEWORK = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|lightning_utilities)(\.\w+)+"
    r"|numpy\.(core|_core)\.multiarray\.(scalar|_reconstruct)|numpy\.(dtype|ndarray)|numpy\.dtypes\.\w+"
    r"|omegaconf(\.\w+)+|typing\.(Any|Union|Optional)|argparse\.Namespace|pathlib\.\w*Path|collections\.defaultdict"
    r"|(builtins|__builtin__)\.(dict|list|tuple|set|int|float|complex|str|unicode|bool|bytes|object|NoneType)"
)
MAPPINGS = ("AttributeDict", "defaultdict")  # classes whose pickles set items


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors by name, memory-mapped if possible, and the metadata of a safetensors file.

    Raises:
        UserError: if the file is missing, damaged or of another format, or refers to code.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: give a .safetensors or a .ckpt")
    if path.suffix == ".safetensors":
        return load_tensors(path), _metadata(path)
    if path.suffix == ".gguf":
        raise UserError(f"{path} is a GGUF file, whose quantized weights ldm does not read: get it as .safetensors")
    if path.suffix in PICKLES:
        return _state_dict(_unpickle(path), path), {}
    raise UserError(f"{path}: the name of a single file must end in one of {', '.join(SUFFIXES)}")


def _metadata(path: Path) -> dict[str, str]:
    check_access(path)
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): download or copy it again") from error


class _Inert:
    """Replaces a class of the training framework: accepts any arguments and does nothing."""

    def __new__(cls, *arguments: Any, **named: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _unpickle(path: Path) -> Any:
    """Read a pickle of `torch.save` without running code: classes other than tensors are inert or an error."""
    try:
        asked = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        zipped = True
    except Exception:  # the format before torch 1.6, or damaged: loading shows which
        asked, zipped = set(), False
    while True:
        if unknown := sorted(name for name in asked if not FRAMEWORK.fullmatch(name)):
            raise UserError(f"{path} refers to {unknown[0]}, which is not part of a model's weights; no code was run")
        try:
            return _load(path, asked, zipped)
        except Exception as error:  # a damaged pickle can raise anything
            found = re.search(r"GLOBAL (\S+)", str(error))
            name = "" if found is None else found[1]
            name = f"builtins.{name}" if name and "." not in name else name  # torch cuts that module off
            if not name or name in asked:
                reason = " ".join(str(error).partition("error:")[2].partition("Check the doc")[0].split())
                reason = reason or type(error).__name__
                raise UserError(
                    f"{path} is not a complete PyTorch checkpoint ({reason}): download or copy it again"
                ) from None
            asked.add(name)


def _stand_in(name: str) -> Any:
    *_, last = name.split(".")
    if last not in MAPPINGS:
        return _Inert
    return OrderedDict if last == "AttributeDict" else _empty


def _empty(*arguments: Any) -> OrderedDict[Any, Any]:
    """Replace a mapping that is made by a call: ignore its arguments."""
    return OrderedDict()


def _load(path: Path, asked: set[str], zipped: bool) -> Any:
    stand_ins = [(_stand_in(name), name) for name in asked]
    with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickles that torch did not write
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the weights of a Lightning checkpoint or of a mapping of names to tensors, beside counters of training."""
    found = content.get("state_dict", content) if isinstance(content, dict) else None
    if isinstance(found, dict):
        found = {name: value for name, value in found.items() if not _is_counter(name, value)}
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path} has no state_dict: it is not a checkpoint of a model")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(f"{path}: {name!r} is a {type(tensor).__name__}, not a tensor: this is not a state_dict")
    return {name: tensor.detach() for name, tensor in found.items()}


def _is_counter(name: Any, value: Any) -> bool:
    """Return whether an entry is a counter or a state of training, such as `global_step`: no name of a weight."""
    return isinstance(name, str) and "." not in name and not isinstance(value, Tensor)
