"""The encoder of T5 1.1 (Raffel et al. 2020), that of transformers' `T5EncoderModel`, with its parameters' names."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from ldm.conditioning.text.encoder import Encoded, TextEncoder, TextSection
from ldm.conditioning.text.format import Format
from ldm.config.section import Count, Width


class T5Config(TextSection):
    """The encoder of T5 1.1 (Raffel et al. 2020) through transformers."""

    kind: Literal["t5"] = "t5"
    has_positions: ClassVar[bool] = False  # T5 encodes distances
    frozen: bool = True
    vocab_size: Width = 32128
    hidden_size: Width = 768
    num_hidden_layers: Count = 12
    num_attention_heads: Width = 12
    head_width: Width = 64
    intermediate_size: Width = 2048
    use_attention_mask: bool = True


FORMAT = Format(
    model_types=("t5",),
    architecture="T5EncoderModel",
    names={
        "max_length": "n_positions",  # of no consequence to T5, whose positions have no table
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "head_width": "d_kv",
        "intermediate_size": "d_ff",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "use_attention_mask": "use_attention_mask",
    },
    defaults={
        "n_positions": 512,
        "vocab_size": 32128,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 6,
        "num_heads": 8,
        "use_attention_mask": False,
        "feed_forward_proj": "relu",
    },
    fixed={
        "feed_forward_proj": ("gated-gelu",),
        "relative_attention_num_buckets": (32,),
        "relative_attention_max_distance": (128,),
        "layer_norm_epsilon": (1e-6,),
        "pad_token_id": (0,),
    },
    written={"dropout_rate": 0.0, "tie_word_embeddings": True, "is_encoder_decoder": False},
    renamed={r"^encoder\.embed_tokens\.": "shared."},
    unused=r"decoder\.|lm_head\.",
)


class T5TextEncoder(TextEncoder):
    """The text encoder of T5: its position embeddings are relative, so texts may have any length."""

    section = T5Config
    format = FORMAT
    from_captions = False
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
        """Return the context (B, L, D) of token ids (B, L); with `use_attention_mask` no token looks at padding."""
        visible = mask if self.config.use_attention_mask else None
        found = self.encoder(inputs_embeds=self.shared(ids), attention_mask=visible)
        return Encoded(found.last_hidden_state)
