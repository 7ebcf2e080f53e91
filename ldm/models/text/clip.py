"""CLIP's text transformer (Radford et al. 2021), that of transformers.

Parameters are named as in the files of `CLIPTextModel` and `CLIPTextModelWithProjection`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm.config import CLIPConfig
from ldm.models.text.encoder import Encoded, TextEncoder

START, END = 49406, 49407  # of CLIP's own vocabulary


class CLIPTextEncoder(TextEncoder):
    """Causal, so that padding, which stands at the end, changes nothing before it: the mask is not needed."""

    config: CLIPConfig

    def __init__(self, config: CLIPConfig) -> None:
        from transformers import CLIPTextConfig, CLIPTextModel

        super().__init__(config)
        width = config.hidden_size
        model = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=config.vocab_size,
                hidden_size=width,
                intermediate_size=config.intermediate_size or 4 * width,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                max_position_embeddings=config.max_length,
                hidden_act=config.hidden_act,
                layer_norm_eps=config.layer_norm_eps,
                bos_token_id=START,
                eos_token_id=config.eos_token_id,
            )
        )
        self.text_model = getattr(model, "text_model", model)  # the model itself since transformers 5
        # No file holds this one: it must have its numbers even where the weights are yet to come (the meta device).
        places = torch.arange(config.max_length, device="cpu")[None]
        self.text_model.embeddings.register_buffer("position_ids", places, persistent=False)
        if config.projection_dim is not None:
            self.text_projection = nn.Linear(width, config.projection_dim, bias=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Encoded:
        """The context (B, L, D) of token ids (B, L) and, with `projection_dim`, the pooled text (B, P)."""
        config = self.config
        last, normed = config.layer == "last", config.final_norm
        found = self.text_model(input_ids=ids, output_hidden_states=not (last and normed))
        if last and normed:
            context = found.last_hidden_state
        else:
            context = found.hidden_states[-1 if last else -2]
            context = self.text_model.final_layer_norm(context) if normed else context
        pooled = None if config.projection_dim is None else self.text_projection(found.pooler_output)
        return Encoded(context, pooled)
