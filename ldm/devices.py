"""Select devices, query their instructions, and create networks without memory on the meta device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ldm.errors import UserError, UserNote


def find_device(name: str | torch.device | None = None) -> torch.device:
    """Return a device by its PyTorch name, by default the first GPU if there is one.

    Raises:
        UserError: if the machine does not have it.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError):  # PyTorch raises any of them
        raise UserError(f"no device {str(name)!r} on this machine: give cpu, or cuda or cuda:1 with a GPU") from None


def computes_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions for bfloat16, so that it is faster than float32; a CPU may lack them."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if not hasattr(torch.cpu, "get_capabilities"):  # older PyTorch reports only whether AVX-512 can replace them
        return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    known: dict[str, object] = torch.cpu.get_capabilities()
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "sve_bf16"))


def warn_of_slow_dtype(dtype: torch.dtype, device: torch.device) -> None:
    """Issue a note for bfloat16 on a CPU without instructions for it."""
    if dtype == torch.bfloat16 and device.type == "cpu" and not computes_bfloat16(device):
        note = "this processor has no bfloat16 instructions: bfloat16 is many times slower than float32"
        warnings.warn(note, UserNote, stacklevel=3)


INITIALIZERS = {nn.init.normal_, Tensor.normal_, nn.init.kaiming_uniform_, nn.init.uniform_}
SHAPE_PRESERVING = {F.group_norm, F.layer_norm, F.silu, F.gelu}


class ShapesOnly(TorchFunctionMode):
    """Skip random initial values, and without gradients also norms and activations.

    On the meta device they take most of the time, and `normal_` imports torch's compiler.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in INITIALIZERS:
            return args[0] if args else kwargs["tensor"]
        if func in SHAPE_PRESERVING and not torch.is_grad_enabled():
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def on_meta() -> Iterator[None]:
    """Create tensors and networks on the meta device: they have shapes and take no memory."""
    with torch.device("meta"), ShapesOnly():
        yield


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor from the host to a device without waiting for it.

    A GPU copies from pinned memory when its queue comes to it; with other memory the host would wait for the queue.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
