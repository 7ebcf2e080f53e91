"""torch.compile for the blocks of networks."""

from __future__ import annotations

import torch
from torch import nn

from ldm.models.attention import TransformerBlock
from ldm.models.layers import ResNetBlock

SHAPES = 256  # compiled versions of a class of blocks; PyTorch's default limit is 8


def compile_blocks(network: nn.Module) -> None:
    """Compile each ResNet and transformer block separately, for static shapes.

    Blocks of equal shapes share their compiled code, so a deep network takes no longer to compile than a shallow one.
    """
    torch._dynamo.config.cache_size_limit = SHAPES
    for block in network.modules():
        if isinstance(block, TransformerBlock):
            block.compile(dynamic=False)
        elif isinstance(block, ResNetBlock):
            block.shifted = torch.compile(block.shifted, dynamic=False)  # type: ignore[method-assign]


def forget_compiled(block: nn.Module) -> None:
    """Make a copy of a block run its own code, not the code compiled for the original."""
    if is_compiled(vars(block).get("shifted")):
        del block.shifted
    block._compiled_call_impl = None


def is_compiled(function: object) -> bool:
    """Return whether a module was compiled by torch.compile."""
    return hasattr(function, "_torchdynamo_orig_callable")
