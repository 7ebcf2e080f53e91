"""Where a pipeline runs."""

from __future__ import annotations

import torch

from ldm.errors import UserError


def find_device(name: str | torch.device | None = None) -> torch.device:
    """A device by its PyTorch name, by default the first GPU if any; raises UserError if it is not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError):  # PyTorch raises any of them
        raise UserError(f"no device {str(name)!r} on this machine: give cpu, or cuda or cuda:1 with a GPU") from None
