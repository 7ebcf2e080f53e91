"""What all text encoders are to the rest: token ids in, a context and perhaps one vector a caption out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, NamedTuple

from pydantic import SerializeAsAny
from torch import Tensor, nn

from ldm.config.section import ByKind, Count, Section, Width
from ldm.registry import TEXT_ENCODERS


class TextSection(Section):
    """What all text encoders have: where they come from and how wide their tokens are."""

    kind: str
    source: str | None = None  # a directory or a Hub id to take weights and tokenizer from; None: new weights
    frozen: bool = False  # not trained together with the U-Net
    vocab_size: Width = 1
    max_length: Width = 77  # tokens, special ones included
    hidden_size: Width = 768  # width of the context
    num_hidden_layers: Count = 12
    num_attention_heads: Width = 12


# A text encoder of any registered kind.
TextConfig = Annotated[SerializeAsAny[TextSection], ByKind(TEXT_ENCODERS, "bert")]


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


def make_text_encoder(config: TextSection) -> TextEncoder:
    """The network that a section describes, with new weights; UserError for sizes its architecture does not have."""
    return TEXT_ENCODERS[config.kind](config)
