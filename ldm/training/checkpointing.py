"""Gradient checkpointing: blocks keep only their inputs and run again in the backward pass (Chen et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.models.attention import TransformerBlock
from ldm.models.blocks import DownBlock, MidBlock, UpBlock
from ldm.models.layers import NOTHING, ResNetBlock


def checkpoint_gradients(network: nn.Module) -> None:
    """Checkpoint every level of the U-Nets and autoencoders in `network`; names and results do not change."""
    for block in network.modules():
        if isinstance(block, DownBlock | MidBlock | UpBlock):
            block.forward = partial(_run, block, block.forward)  # type: ignore[method-assign]


def _run(
    block: nn.Module,
    forward: Callable[..., Tensor],
    x: Tensor,
    shifts: Any = NOTHING,
    projected: Any = NOTHING,
    skips: list[Tensor] | None = None,
    **options: slice,
) -> Tensor:
    """Wrap `forward`, which consumes its iterators and changes its list, as a function that may run twice.

    A part of a block takes no more than the whole from its iterators; what it leaves is nobody else's.
    """
    own_shifts = list(islice(shifts, _count(block, ResNetBlock)))
    own_projected = list(islice(projected, _count(block, TransformerBlock)))
    before = list(skips or ())

    def again(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        left = list(before)
        lists: dict[str, Any] = {} if skips is None else {"skips": left}
        return forward(x, iter(own_shifts), iter(own_projected), **lists, **options), left

    out, left = checkpoint(again, x, use_reentrant=False)
    if skips is not None:
        skips[:] = left
    return out


def _count(block: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in block.modules())
