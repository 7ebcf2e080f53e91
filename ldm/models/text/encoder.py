"""What all text encoders are to the rest: token ids in, a context and perhaps one vector a caption out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from ldm.config.conditions import TextSection


class Encoded(NamedTuple):
    """What a text encoder makes of captions."""

    context: Tensor  # (B, L, D), which the U-Net attends to
    pooled: Tensor | None = None  # (B, P), one vector a caption, where the encoder makes it


class TextEncoder(nn.Module, ABC):
    """A network from token ids to what a U-Net is told, described by its configuration alone."""

    def __init__(self, config: TextSection) -> None:
        super().__init__()
        self.config = config

    @property
    def vocab_size(self) -> int:
        """Number of rows of its table of tokens."""
        return self.config.vocab_size

    @abstractmethod
    def forward(self, ids: Tensor, mask: Tensor) -> Encoded:
        """Token ids and mask (B, L), 1 at tokens and 0 at padding, to the context (B, L, D)."""


def initialise(module: nn.Module) -> None:
    """Normal with a standard deviation of 0.02, padding zero (Devlin et al. 2019, their published code)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, 0.0, 0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight[module.padding_idx])
