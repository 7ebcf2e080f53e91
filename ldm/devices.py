"""Where networks run, and what can be computed there."""

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


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16, so that it is faster than float32; a CPU may lack them."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if not hasattr(torch.cpu, "get_capabilities"):  # older PyTorch knows only whether AVX-512 can stand in for them
        return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    known: dict[str, object] = torch.cpu.get_capabilities()
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "sve_bf16"))
