"""torch.compile on the blocks that networks are made of."""

from __future__ import annotations

import torch
from torch import nn

from ldm.models.attention import TransformerBlock
from ldm.models.layers import ResNetBlock

SHAPES = 256  # of blocks of one class, each compiled once; PyTorch gives up after 8


def compile_blocks(network: nn.Module) -> None:
    """Compile every ResNet and transformer block by itself, for the shapes that it gets.

    Blocks of equal sizes share what is compiled, so that a deep network starts as soon as a shallow one. Skips, shifts
    and contexts are handed on between them as ever.
    """
    torch._dynamo.config.cache_size_limit = SHAPES
    for block in network.modules():
        if isinstance(block, TransformerBlock):
            block.compile(dynamic=False)
        elif isinstance(block, ResNetBlock):
            block.shifted = torch.compile(block.shifted, dynamic=False)  # type: ignore[method-assign]


def forget_compiled(block: nn.Module) -> None:
    """Let the copy of a block compute by itself, which else calls what was compiled of its original."""
    if is_compiled(vars(block).get("shifted")):
        del block.shifted
    block._compiled_call_impl = None


def is_compiled(function: object) -> bool:
    """Whether torch.compile has made it."""
    return hasattr(function, "_torchdynamo_orig_callable")
