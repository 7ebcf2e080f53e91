"""Tensors that processes divide among them, by FSDP2 or by DeepSpeed's stage 3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_shard(tensor: Any) -> TypeGuard[DTensor]:
    """Whether a tensor is one process' part of a whole, told without the module of DTensor: importing it is slow."""
    return hasattr(tensor, "full_tensor") or hasattr(tensor, "ds_id")


def undivided(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be divided; where it is, every process must come here."""
    if hasattr(tensor, "ds_id"):
        return ZeroShard(local(tensor), tensor).full_tensor()
    return tensor.full_tensor() if is_shard(tensor) else tensor


def divided(whole: Tensor, like: Tensor) -> Any:
    """A whole tensor, divided among the processes as `like` is, if it is."""
    if hasattr(like, "ds_id") or isinstance(like, ZeroShard):
        return ZeroShard.of(whole, like.weight if isinstance(like, ZeroShard) else like)
    if not is_shard(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)


def local(tensor: Any) -> Tensor:
    """This process' part of a tensor, which shares its memory; a weight of DeepSpeed in float32, flat."""
    if hasattr(tensor, "ds_id"):
        from deepspeed.utils import safe_get_local_fp32_param

        return safe_get_local_fp32_param(tensor) if tensor.requires_grad else tensor.ds_tensor
    return tensor.to_local() if is_shard(tensor) else tensor


class ZeroShard:
    """A tensor divided as DeepSpeed's stage 3 divides a weight: flat, filled up with zeros, in equal parts.

    With the methods of a DTensor that are needed here.
    """

    def __init__(self, part: Tensor, weight: Any) -> None:
        self._part, self.weight = part, weight

    @classmethod
    def of(cls, whole: Tensor, weight: Any) -> ZeroShard:
        """This process' part of a whole."""
        size, rank = weight.ds_tensor.numel(), torch.distributed.get_rank()
        flat = whole.detach().to(weight.ds_tensor.device).flatten()
        part = torch.zeros(size, dtype=whole.dtype, device=flat.device)
        held = flat[rank * size : (rank + 1) * size]
        part[: held.numel()] = held
        return cls(part, weight)

    def to_local(self) -> Tensor:
        """The part itself."""
        return self._part

    def full_tensor(self) -> Tensor:
        """The whole; every process must come here."""
        parts = [torch.empty_like(self._part) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, self._part.contiguous())
        return torch.cat(parts)[: self.weight.ds_numel].view(self.weight.ds_shape)
