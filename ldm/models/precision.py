"""Computations that need float32, whatever the dtype of the weights and autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.amp.autocast_mode import is_autocast_available


def at_least_float32(values: Tensor) -> Tensor:
    """Convert half precision to float32; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a context without autocast on `device`."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext()  # not on meta
