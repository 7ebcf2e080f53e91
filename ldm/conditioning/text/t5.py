"""The encoder of T5 1.1 (Raffel et al. 2020), that of transformers' `T5EncoderModel`, with its parameters' names."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ldm.conditioning.text.encoder import Encoded, TextEncoder, TextSection
from ldm.config.section import Count, Width


class T5Config(TextSection):
    """The encoder of T5 1.1 (Raffel et al. 2020) through transformers."""

    kind: Literal["t5"] = "t5"
    frozen: bool = True
    vocab_size: Width = 32128
    hidden_size: Width = 768
    num_hidden_layers: Count = 12
    num_attention_heads: Width = 12
    head_width: Width = 64
    intermediate_size: Width = 2048
    use_attention_mask: bool = True


class T5TextEncoder(TextEncoder):
    """Knows positions by their distances alone, so that texts may have any length."""

    section = T5Config
    config: T5Config

    def __init__(self, config: T5Config) -> None:
        from transformers import T5Config as TheirConfig
        from transformers import T5EncoderModel

        super().__init__(config)
        model = T5EncoderModel(
            TheirConfig(
                vocab_size=config.vocab_size,
                d_model=config.hidden_size,
                d_kv=config.head_width,
                d_ff=config.intermediate_size,
                num_layers=config.num_hidden_layers,
                num_heads=config.num_attention_heads,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
            )
        )
        self.shared, self.encoder = model.shared, model.encoder
        self.encoder.embed_tokens = None  # a second name of `shared`, which would be filled apart from it

    def forward(self, ids: Tensor, mask: Tensor) -> Encoded:
        """The context (B, L, D) of token ids (B, L); with `use_attention_mask` no token looks at padding."""
        visible = mask if self.config.use_attention_mask else None
        found = self.encoder(inputs_embeds=self.shared(ids), attention_mask=visible)
        return Encoded(found.last_hidden_state)
