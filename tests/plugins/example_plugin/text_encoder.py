"""A text encoder: embedded tokens and positions, without attention."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from ldm.conditioning.text.encoder import Encoded, TextEncoder, TextSection
from ldm.config.section import Width
from ldm.registry import TEXT_ENCODERS


class BagOfWordsConfig(TextSection):
    kind: Literal["bag_of_words"] = "bag_of_words"
    vocab_size: Width = 512
    max_length: Width = 12
    hidden_size: Width = 32
    scale: float = 1.0  # of the tokens


@TEXT_ENCODERS.register("bag_of_words")
class BagOfWordsEncoder(TextEncoder):
    section = BagOfWordsConfig
    config: BagOfWordsConfig

    def __init__(self, config: BagOfWordsConfig) -> None:
        super().__init__(config)
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_length, config.hidden_size)

    def forward(self, ids: Tensor, mask: Tensor) -> Encoded:
        context = self.config.scale * self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        return Encoded(context * mask[..., None])
