"""CLIP's text transformer (Radford et al. 2021, section 2.4).

Parameters are named as in the files of transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`, and the numbers
are the same; written here because importing those takes longer than reading a checkpoint of gigabytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.conditioning.text.encoder import Encoded, TextEncoder, TextSection, initialise
from ldm.conditioning.text.format import Format
from ldm.config.section import Width, check_divisible
from ldm.models.attention import attend
from ldm.storage.fields import Fields

if TYPE_CHECKING:
    from ldm.conditioning.image.encoders import CLIPImageConfig


class CLIPConfig(TextSection):
    """CLIP's text transformer (Radford et al. 2021); the weights of OpenCLIP fit it as well."""

    kind: Literal["clip"] = "clip"
    frozen: bool = True
    vocab_size: Width = 49408
    intermediate_size: Width | None = None  # None: four times the width
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"  # gelu: the models of OpenCLIP
    layer_norm_eps: float = Field(1e-5, gt=0, lt=1)
    eos_token_id: int = Field(49407, ge=0)  # where the text is pooled; 2 (old files): at the largest id
    projection_dim: Width | None = None  # width of the pooled text; None: it is not made
    layer: Literal["last", "penultimate"] = "last"  # whose output is the context
    final_norm: bool = True  # whether that output goes through the last layer norm

    @model_validator(mode="after")
    def _width_divides(self) -> CLIPConfig:
        if self.source is None or "num_attention_heads" in self.model_fields_set:  # else the source has their number
            check_divisible("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        return self


PROJECTED = "CLIPTextModelWithProjection"
LARGEST = 2  # an `eos_token_id` of old files, which stands for the largest id of a text


def quick_gelu(x: Tensor) -> Tensor:
    """Compute x sigmoid(1.702 x), the activation of CLIP (Hendrycks and Gimpel 2016, section 2)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class SelfAttention(nn.Module):
    """Multi-head self-attention, optionally causal."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens: Tensor, visible: Tensor | None = None) -> Tensor:
        """Map tokens (B, L, D) to the same shape; `visible` (L, L) is true where a token may look, None: everywhere."""
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
        """Map tokens (B, L, D) to the same shape."""
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
        """Return tokens (B, L, D) before and after the last layer, neither of them normalised."""
        length = ids.shape[1]
        tokens = self.embeddings["token_embedding"](ids) + self.embeddings["position_embedding"].weight[:length]
        visible = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        before = tokens
        for layer in self.encoder["layers"]:
            before, tokens = tokens, layer(tokens, visible)
        return before, tokens


FORMAT = Format(
    model_types=("clip_text_model", "clip"),
    architecture="CLIPTextModel",
    names={
        "max_length": "max_position_embeddings",
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_hidden_layers": "num_hidden_layers",
        "num_attention_heads": "num_attention_heads",
        "hidden_act": "hidden_act",
        "layer_norm_eps": "layer_norm_eps",
        "eos_token_id": "eos_token_id",
        "projection_dim": "projection_dim",
    },
    defaults={
        "max_position_embeddings": 77,
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "eos_token_id": 49407,
        "projection_dim": 512,
    },
    fixed={"use_attention_mask": (False, None)},
    noted={"layer": "last", "final_norm": True},
    written={"bos_token_id": None},
    renamed={r"^(?=(embeddings|encoder|final_layer_norm)\.)": "text_model."},
    unused=r"vision_model\.|visual_projection\.|logit_scale$|text_model\.embeddings\.position_ids$",
)


class CLIPTextEncoder(TextEncoder):
    """Causal: padding at the end changes nothing before it, so no mask is needed."""

    section = CLIPConfig
    format = FORMAT
    from_captions = False
    config: CLIPConfig

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__(config)
        self.text_model = Transformer(config)
        if config.projection_dim is not None:
            self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        self.apply(initialise)

    def forward(self, ids: Tensor, mask: Tensor) -> Encoded:
        """Return the context (B, L, D) of token ids (B, L) and, with `projection_dim`, the pooled text (B, P)."""
        config, norm = self.config, self.text_model.final_layer_norm
        before, after = self.text_model(ids)
        context = after if config.layer == "last" else before
        pooled = None if config.projection_dim is None else self.text_projection(norm(self._end(ids, after)))
        return Encoded(norm(context) if config.final_norm else context, pooled)

    def _end(self, ids: Tensor, tokens: Tensor) -> Tensor:
        """Return the token (B, D) at the end of each text, which alone attends to the whole text."""
        marks = ids if self.config.eos_token_id == LARGEST else (ids == self.config.eos_token_id).int()
        return tokens[torch.arange(len(ids), device=ids.device), marks.argmax(-1)]

    # --- files

    @classmethod
    def part(cls, section: Any) -> tuple[str, str]:
        """Return the class with a projection if the section has one."""
        return ("transformers", FORMAT.architecture if section.projection_dim is None else PROJECTED)

    @classmethod
    def loadable_parts(cls) -> tuple[tuple[str, str], ...]:
        """Return the classes with and without a projection."""
        return (("transformers", FORMAT.architecture), ("transformers", PROJECTED))

    @classmethod
    def to_fields(cls, section: Any) -> Fields:
        """Return the fields; transformers requires a number for two sizes that may be None here."""
        width = section.hidden_size
        sizes = {
            "intermediate_size": section.intermediate_size or 4 * width,
            "projection_dim": section.projection_dim or width,
        }
        return super().to_fields(section) | sizes

    @classmethod
    def from_fields(cls, fields: Fields, where: Path) -> TextSection:
        """Also of a whole CLIP; the projection counts only where the class has one."""
        if isinstance(fields.get("text_config"), dict):
            fields = fields["text_config"] | {"projection_dim": fields.get("projection_dim", 512)}
        elif fields.get("architectures") != [PROJECTED]:
            fields = fields | {"projection_dim": None}
        section = super().from_fields(fields, where)
        usual = getattr(section, "intermediate_size", None) == 4 * section.hidden_size
        return section.model_copy(update={"intermediate_size": None}) if usual else section

    @classmethod
    def saved_section(cls, section: Any) -> TextSection:
        """Return the section, without the last layer if the context is the penultimate output (SD 2)."""
        config: CLIPConfig = section
        if config.layer == "penultimate" and config.final_norm and config.projection_dim is None:
            return config.model_copy(update={"num_hidden_layers": config.num_hidden_layers - 1, "layer": "last"})
        return config

    def saved_tensors(self) -> dict[str, Tensor]:
        """Return weights of the layers that are saved."""
        return kept_layers(self.state_dict(), self.saved_section(self.config).num_hidden_layers)


def kept_layers(tensors: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Drop the weights of layers from number `count` on."""
    found = {name: re.search(r"encoder\.layers\.(\d+)\.", name) for name in tensors}
    return {name: tensor for name, tensor in tensors.items() if (at := found[name]) is None or int(at[1]) < count}
