"""Weights of a network in a folder: one file or shards, in any precision, with names and shapes checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ldm.devices import on_meta
from ldm.errors import UserError
from ldm.storage.fields import load_fields
from ldm.storage.store import load_tensors, save_json, save_tensors

N = TypeVar("N", bound=nn.Module)

SHARD_SIZE = 5_000_000_000  # bytes
# By safetensors' names.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def find_weights(folder: Path, stem: str) -> Path | None:
    """Find the file of weights in a folder, or the index of its shards; half precision if there is no other."""
    for variant in ("", ".fp16", ".bf16"):
        for name in (
            f"{stem}{variant}.safetensors",
            f"{stem}{variant}.safetensors.index.json",
            f"{stem}.safetensors.index{variant}.json",
        ):
            if (folder / name).is_file():
                return folder / name
    return None


def load_weights(folder: Path, stem: str) -> dict[str, Tensor]:
    """Load `stem.safetensors` of a folder, its shards, or else their half-precision variants.

    Raises:
        UserError: if there are none, or a file is damaged.
    """
    found = find_weights(folder, stem)
    if found is not None:
        return _load_shards(found) if found.suffix == ".json" else load_tensors(found)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: there are no weights to load")
    if list(folder.glob("*.bin")) or list(folder.glob("*.ckpt")):
        raise UserError(
            f"{folder} has weights only as a pickle, which ldm does not load: get them as .safetensors, or convert a "
            "single file with `ldm convert`"
        )
    raise UserError(f"{folder / stem}.safetensors is missing: the checkpoint is incomplete")


def _load_shards(index: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    places = load_places(index)
    for name in sorted(set(places.values())):
        tensors |= load_tensors(index.parent / name)
    if missing := places.keys() - tensors.keys():
        raise UserError(f"{index} lists {_some(missing)}, which is in no shard: download or copy the shards again")
    return tensors


def load_places(index: Path) -> dict[str, str]:
    """Read the file name of each tensor from an index of shards.

    Raises:
        UserError: if the index is missing or damaged.
    """
    places = load_fields(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{index} has no weight_map: it is damaged, download or copy it again")
    return places


def save_weights(
    folder: Path, stem: str, tensors: dict[str, Tensor], dtype: torch.dtype | None, shard_size: int = SHARD_SIZE
) -> None:
    """Write tensors, floating-point ones as `dtype`, in files of at most `shard_size` bytes; remove older files.

    Raises:
        UserError: if `dtype` cannot hold a value.
    """
    if dtype is not None:
        tensors = {name: _converted(name, tensor, dtype) for name, tensor in tensors.items()}
    shards = _shards(tensors, shard_size)
    count = len(shards)
    names = [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    if count == 1:
        names = [f"{stem}.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        save_tensors(folder / name, shard, {"format": "pt"})
    if count > 1:
        places = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        names.append(f"{stem}.safetensors.index.json")
        save_json(folder / names[-1], index)
    for path in folder.glob(f"{stem}*.safetensors*"):
        if path.name not in names:
            path.unlink()


def _converted(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a floating-point tensor to `dtype`.

    Raises:
        UserError: if that makes a value infinite.
    """
    if not tensor.is_floating_point() or tensor.dtype == dtype:
        return tensor
    converted = tensor.to(dtype)
    if dtype == torch.float16 and bool((converted.isinf() & tensor.isfinite()).any()):
        raise UserError(f"{name} has the value {tensor.abs().max():g}, above the 65504 of float16: save as bfloat16")
    return converted


def _shards(tensors: dict[str, Tensor], shard_size: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_size:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def build(make: Callable[[], N], tensors: dict[str, Tensor], dtype: torch.dtype, where: Path) -> N:
    """Build a network in evaluation mode with the given tensors as weights of type `dtype`; memory is taken once.

    Raises:
        UserError: if a tensor is missing, unexpected or of another shape.
    """
    with on_meta():
        network = make()
    expected = network.state_dict()
    if missing := expected.keys() - tensors.keys():
        raise UserError(f"the weights in {where} lack {_some(missing)}, which config.json describes")
    if unknown := tensors.keys() - expected.keys():
        raise UserError(f"the weights in {where} have {_some(unknown)}, which config.json does not describe")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{name} in {where} has shape {tuple(tensor.shape)}, but config.json describes "
                f"{tuple(expected[name].shape)}"
            )
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise UserError(f"{name} in {where} is {tensor.dtype}, not a type of weights: the file is damaged")
    network.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors.items()}, assign=True)
    return network.eval()


def _some(names: Any) -> str:
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if others else first
