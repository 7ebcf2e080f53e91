"""The transformer over BERT's tokens of the 1.45-billion-parameter model (Rombach et al. 2022, appendix E.2.1).

Parameters are named as in diffusers' `LDMBertModel`.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from ldm.conditioning.text.encoder import Encoded, TextEncoder, TextSection, initialise
from ldm.conditioning.text.format import Format
from ldm.config.section import Count, Width
from ldm.errors import UserError
from ldm.models.attention import attend


class LDMBertConfig(TextSection):
    """The transformer over BERT's tokens of the 1.45-billion-parameter model (Rombach et al. 2022, appendix E.2.1)."""

    kind: Literal["ldm_bert"] = "ldm_bert"
    vocab_size: Width = 30522
    hidden_size: Width = 1280
    num_hidden_layers: Count = 32
    num_attention_heads: Width = 8
    head_width: Width = 64
    tokens: Literal["words", "boxes"] = "words"  # boxes: the tokens of a layout, not of a text; no tokenizer


class SelfAttention(nn.Module):
    """Multi-head self-attention whose heads together may be narrower than the tokens; no bias but in the last layer."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, heads * head_width, bias=False) for _ in range(3))
        self.out_proj = nn.Linear(heads * head_width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, L, D) to the same shape."""
        projected = (layer(tokens) for layer in (self.q_proj, self.k_proj, self.v_proj))
        queries, keys, values = (h.unflatten(-1, (self.heads, -1)).transpose(1, 2) for h in projected)
        h = attend(queries, keys, values)  # (B, heads, L, width of a head)
        return self.out_proj(h.transpose(1, 2).flatten(2))  # (B, L, D)


class Layer(nn.Module):
    """Self-attention and a feed-forward layer, each on normalised tokens and added to them."""

    def __init__(self, config: LDMBertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn = SelfAttention(width, config.num_attention_heads, config.head_width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, L, D) to the same shape."""
        tokens = tokens + self.self_attn(self.self_attn_layer_norm(tokens))
        return tokens + self.fc2(F.gelu(self.fc1(self.final_layer_norm(tokens))))


class Transformer(nn.Module):
    """Embedded tokens and positions through all layers, normalised at the end."""

    def __init__(self, config: LDMBertConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_length, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.layer_norm = nn.LayerNorm(config.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (B, L) to (B, L, D)."""
        tokens = self.embed_tokens(ids) + self.embed_positions.weight[: ids.shape[1]]
        for layer in self.layers:
            tokens = layer(tokens)
        return self.layer_norm(tokens)


FORMAT = Format(
    model_types=("ldmbert",),
    architecture="LDMBertModel",
    names={
        "max_length": "max_position_embeddings",
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "num_hidden_layers": "encoder_layers",
        "num_attention_heads": "encoder_attention_heads",
        "head_width": "head_dim",
    },
    defaults={
        "max_position_embeddings": 77,
        "vocab_size": 30522,
        "d_model": 1280,
        "encoder_layers": 32,
        "encoder_attention_heads": 8,
        "head_dim": 64,
        "encoder_ffn_dim": 5120,
    },
    fixed={"activation_function": ("gelu",), "pad_token_id": (0,), "use_attention_mask": (False, None)},
    feed_forward="encoder_ffn_dim",
    noted={"tokens": "words"},
    written={"dropout": 0.0},
)


class LDMBertTextEncoder(TextEncoder):
    """Trained from scratch together with its U-Net; its tokens look at padding as well, as the published one's do.

    `to_logits` is in every published file and count, and nothing ever passes through it.
    """

    section = LDMBertConfig
    format = FORMAT
    config: LDMBertConfig

    def __init__(self, config: LDMBertConfig) -> None:
        super().__init__(config)
        self.model = Transformer(config)
        self.to_logits = nn.Linear(config.hidden_size, config.vocab_size)
        self.apply(initialise)
        self.to_logits.requires_grad_(False)

    def forward(self, ids: Tensor, mask: Tensor) -> Encoded:
        """Return the context (B, L, D) of token ids (B, L), whatever the mask."""
        return Encoded(self.model(ids))

    @classmethod
    def part(cls, section: TextSection) -> tuple[str, str]:
        """Return the library that diffusers' pipeline of this model names."""
        return ("latent_diffusion", FORMAT.architecture)

    @classmethod
    def check_training(cls, section: TextSection, name: str, new: bool) -> None:
        """Check that captions are words, not the tokens of a layout."""
        if isinstance(section, LDMBertConfig) and section.tokens == "boxes":
            raise UserError(f"{name}.tokens is boxes, but train-unet has captions: set it to words")
        super().check_training(section, name, new)
