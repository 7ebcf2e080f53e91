"""CLIP's text transformer (Radford et al. 2021, section 2.4).

Parameters are named as in the files of transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`, and the numbers
are the same; written here because importing those takes longer than reading a checkpoint of gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.conditioning.text.encoder import Encoded, TextEncoder, TextSection, initialise
from ldm.config.section import Width, check_divisible
from ldm.models.attention import attend

if TYPE_CHECKING:
    from ldm.conditioning.image.encoders import CLIPImageConfig


class CLIPConfig(TextSection):
    """CLIP's text transformer (Radford et al. 2021); the weights of OpenCLIP fit it as well."""

    kind: Literal["clip"] = "clip"
    frozen: bool = True
    vocab_size: Width = 49408
    intermediate_size: Width | None = None  # None: four times the width
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"  # gelu: the models of OpenCLIP
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407  # where the text is pooled: its first place; 2, in old files: at the largest id
    projection_dim: Width | None = None  # width of the pooled text; None: it is not made
    layer: Literal["last", "penultimate"] = "last"  # whose output is the context
    final_norm: bool = True  # whether that output goes through the last layer norm

    @model_validator(mode="after")
    def _width_divides(self) -> CLIPConfig:
        if self.source is None or "num_attention_heads" in self.model_fields_set:  # else the source has their number
            check_divisible("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        return self


LARGEST = 2  # an `eos_token_id` of old files, which stands for the largest id of a text


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), which CLIP was trained with (Hendrycks and Gimpel 2016, section 2)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class SelfAttention(nn.Module):
    """Multi-head self-attention; causal where it is told so."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        """Tokens (B, L, D) to the same shape; `visible` (L, L) is true where a token may look, None: everywhere."""
        projected = (layer(tokens) for layer in (self.q_proj, self.k_proj, self.v_proj))
        queries, keys, values = (h.unflatten(-1, (self.heads, -1)).transpose(1, 2) for h in projected)
        h = attend(queries, keys, values, visible)  # (B, heads, L, D / heads)
        return self.out_proj(h.transpose(1, 2).flatten(2))  # (B, L, D)


class Layer(nn.Module):
    """Self-attention and a feed-forward layer, each on normalised tokens and added to them."""

    def __init__(self, config: CLIPConfig | CLIPImageConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size or 4 * config.hidden_size
        self.layer_norm1 = nn.LayerNorm(width, config.layer_norm_eps)
        self.self_attn = SelfAttention(width, config.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(width, config.layer_norm_eps)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        """Tokens (B, L, D) to the same shape."""
        tokens = tokens + self.self_attn(self.layer_norm1(tokens), visible)
        return tokens + self.mlp["fc2"](self.activation(self.mlp["fc1"](self.layer_norm2(tokens))))


class Transformer(nn.Module):
    """Embedded tokens and positions, the layers, and the norm after them."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        width = config.hidden_size
        tokens, places = nn.Embedding(config.vocab_size, width), nn.Embedding(config.max_length, width)
        self.embeddings = nn.ModuleDict({"token_embedding": tokens, "position_embedding": places})
        layers = [Layer(config) for _ in range(config.num_hidden_layers)]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.final_layer_norm = nn.LayerNorm(width, config.layer_norm_eps)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, D) before and after the last layer, neither of them normalised."""
        length = ids.shape[1]
        tokens = self.embeddings["token_embedding"](ids) + self.embeddings["position_embedding"].weight[:length]
        visible = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        before = tokens
        for layer in self.encoder["layers"]:
            before, tokens = tokens, layer(tokens, visible)
        return before, tokens


class CLIPTextEncoder(TextEncoder):
    """Causal, so that padding, which stands at the end, changes nothing before it: the mask is not needed."""

    section = CLIPConfig
    config: CLIPConfig

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__(config)
        self.text_model = Transformer(config)
        if config.projection_dim is not None:
            self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        self.apply(initialise)

    def forward(self, ids: Tensor, mask: Tensor) -> Encoded:
        """The context (B, L, D) of token ids (B, L) and, with `projection_dim`, the pooled text (B, P)."""
        config, norm = self.config, self.text_model.final_layer_norm
        before, after = self.text_model(ids)
        context = after if config.layer == "last" else before
        pooled = None if config.projection_dim is None else self.text_projection(norm(self._end(ids, after)))
        return Encoded(norm(context) if config.final_norm else context, pooled)

    def _end(self, ids: Tensor, tokens: Tensor) -> Tensor:
        """The token (B, D) at the end of each text, which alone has seen all of it."""
        marks = ids if self.config.eos_token_id == LARGEST else (ids == self.config.eos_token_id).int()
        return tokens[torch.arange(len(ids), device=ids.device), marks.argmax(-1)]
