"""What must not be computed in half precision, whatever the weights' type or the autocast around."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.amp.autocast_mode import is_autocast_available


def at_least_float32(values: Tensor) -> Tensor:
    """Values in float32 at least: half precision is lifted, float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Within it no autocast rounds what is computed on `device`."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext()  # not on meta
