"""Which computations need float32, and errors for outputs that a dtype cannot hold."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.amp.autocast_mode import is_autocast_available

from ldm.errors import UserError

# What to do if an output in this dtype is not finite.
ADVICE = {
    torch.float16: "compute in bfloat16 or float32 (--dtype bfloat16, or dtype=torch.bfloat16 in Python)",
    torch.bfloat16: "compute in float32 (--dtype float32, or dtype=torch.float32 in Python)",
}
OTHER_ADVICE = "lower the guidance scale, or use another checkpoint, since these weights may be damaged"


class NonFiniteError(UserError):
    """The output of a network is NaN or infinite."""


def not_finite(what: str, dtype: torch.dtype) -> NonFiniteError:
    """Return the error for an output in `dtype` that is not finite; `what` names the network."""
    name = str(dtype).removeprefix("torch.")
    advice = ADVICE.get(dtype, OTHER_ADVICE)
    return NonFiniteError(f"the output of {what} in {name} is not finite (NaN or infinity): {advice}")


def require_finite(values: Tensor, what: str, dtype: torch.dtype | None = None) -> Tensor:
    """Return an output of a network; this waits for a GPU.

    Args:
        what: the network, as the error names it.
        dtype: that the network computes in; None: that of `values`.

    Raises:
        NonFiniteError: if a value is NaN or infinite; suggests a dtype.
    """
    if not values.isfinite().all():
        raise not_finite(what, dtype or values.dtype)
    return values


def supported_dtype(config: object, dtype: torch.dtype) -> torch.dtype:
    """Return `dtype`, but float32 in place of float16 for a configuration with `force_upcast`."""
    upcast = dtype == torch.float16 and getattr(config, "force_upcast", False)
    return torch.float32 if upcast else dtype


def at_least_float32(values: Tensor) -> Tensor:
    """Convert half precision to float32; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a context without autocast on `device`."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext()  # not on meta
