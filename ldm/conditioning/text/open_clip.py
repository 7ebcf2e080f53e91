"""Text transformers of open_clip_torch (Cherti et al. 2023), by the name of their architecture.

Parameters are named as in open_clip's text tower.
"""

from __future__ import annotations

import difflib
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldm.conditioning.text.clip import CLIPConfig, CLIPTextEncoder, kept_layers
from ldm.conditioning.text.encoder import Encoded, TextEncoder, TextSection
from ldm.conditioning.text.open_clip_names import clip_from_open_clip
from ldm.config.section import Count, Width
from ldm.errors import UserError


class OpenCLIPConfig(TextSection):
    """A text transformer of open_clip_torch, by the name of its architecture."""

    kind: Literal["open_clip"] = "open_clip"
    frozen: bool = True
    model: str = "ViT-H-14"  # source: a local file of its weights, or the name of published ones
    vocab_size: Width = 49408
    hidden_size: Width = 1024
    num_hidden_layers: Count = 24
    num_attention_heads: Width = 16
    projection_dim: Width | None = None  # width of the pooled text; None: it is not made
    layer: Literal["last", "penultimate"] = "penultimate"
    final_norm: bool = True


SIZES = {  # ours -> theirs
    "vocab_size": "vocab_size",
    "max_length": "context_length",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
}


class OpenCLIPTextEncoder(TextEncoder):
    """The text encoder of OpenCLIP: causal, so padding does not affect earlier tokens and no mask is needed."""

    section = OpenCLIPConfig
    from_captions = False
    config: OpenCLIPConfig

    def __init__(self, config: OpenCLIPConfig) -> None:
        from open_clip.transformer import QuickGELU, TextTransformer

        super().__init__(config)
        _check_sizes(config)
        architecture = text_architecture(config.model)
        tower = TextTransformer(
            **{theirs: architecture[theirs] for theirs in SIZES.values()},
            output_dim=architecture["embed_dim"],
            act_layer=QuickGELU if architecture["quick_gelu"] else nn.GELU,
        )
        self.token_embedding, self.positional_embedding = tower.token_embedding, tower.positional_embedding
        self.transformer, self.ln_final = tower.transformer, tower.ln_final
        if config.projection_dim is not None:
            self.text_projection = tower.text_projection  # (D, P)

    def forward(self, ids: Tensor, mask: Tensor) -> Encoded:
        """Return the context (B, L, D) of token ids (B, L) and, with `projection_dim`, the pooled text (B, P)."""
        config, length = self.config, ids.shape[1]
        h = self.token_embedding(ids) + self.positional_embedding[:length]
        causal = torch.full((length, length), float("-inf"), device=h.device, dtype=h.dtype).triu(1)
        *blocks, last = self.transformer.resblocks
        for block in blocks:
            h = block(h, attn_mask=causal)
        context = h
        if config.layer == "last" or config.projection_dim is not None:
            h = last(h, attn_mask=causal)
        if config.layer == "last":
            context = h
        pooled = None
        if config.projection_dim is not None:
            ends = h[torch.arange(len(h), device=h.device), ids.argmax(-1)]  # the end of the text is the largest id
            pooled = self.ln_final(ends) @ self.text_projection
        return Encoded(self.ln_final(context) if config.final_norm else context, pooled)

    # --- files: saved as the CLIP that is the same network

    @classmethod
    def model_types(cls) -> tuple[str, ...]:
        """None: such folders are CLIP's."""
        return ()

    @classmethod
    def loadable_parts(cls) -> tuple[tuple[str, str], ...]:
        """None: such folders are CLIP's."""
        return ()

    @classmethod
    def saved_section(cls, section: Any) -> TextSection:
        """Return the section of the same network as a CLIP."""
        return CLIPTextEncoder.saved_section(clip_config(section))

    def saved_tensors(self) -> dict[str, Tensor]:
        """Return the weights under CLIP's names."""
        return kept_layers(clip_from_open_clip(self.state_dict()), self.saved_section(self.config).num_hidden_layers)


def clip_config(config: OpenCLIPConfig) -> CLIPConfig:
    """Return the CLIP that is the same network; its padding, though, depends on its tokenizer."""
    same = config.model_dump(exclude={"kind", "model"})
    act = "quick_gelu" if text_architecture(config.model)["quick_gelu"] else "gelu"
    return CLIPConfig(**same, hidden_act=act, eos_token_id=2)


def text_architecture(model: str) -> dict[str, Any]:
    """Return the text tower of an architecture of open_clip, and its `embed_dim` and `quick_gelu`.

    Raises UserError for a name that open_clip does not know and for a tower of another kind than CLIP's.
    """
    import open_clip

    if model not in open_clip.list_models():
        near = difflib.get_close_matches(model, open_clip.list_models(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see open_clip.list_models()"
        raise UserError(f"text.model {model!r}: open_clip has no such architecture; {hint}")
    found = open_clip.get_model_config(model)
    defaults = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
    plain = {**defaults, "mlp_ratio": 4.0, "pool_type": "argmax", "proj_type": "linear"}
    text = found["text_cfg"]
    strange = [name for name, value in text.items() if name not in defaults and value != plain.get(name)]
    if strange or found.get("custom_text"):
        raise UserError(
            f"text.model {model!r}: its text tower is not CLIP's own ({', '.join(strange) or 'custom_text'}), "
            "which ldm does not have"
        )
    rest = {"embed_dim": found["embed_dim"], "quick_gelu": bool(found.get("quick_gelu"))}
    return {**defaults, **{name: text[name] for name in defaults.keys() & text.keys()}, **rest}


def architecture_sizes(config: OpenCLIPConfig) -> dict[str, int]:
    """Return the sizes that an architecture prescribes for a section."""
    architecture = text_architecture(config.model)
    sizes = {ours: architecture[theirs] for ours, theirs in SIZES.items()}
    return sizes if config.projection_dim is None else sizes | {"projection_dim": architecture["embed_dim"]}


def _check_sizes(config: OpenCLIPConfig) -> None:
    wrong = [
        f"{name} is {getattr(config, name)}, not {size}"
        for name, size in architecture_sizes(config).items()
        if getattr(config, name) != size
    ]
    if wrong:
        raise UserError(f"the text encoder is not open_clip's {config.model}: {'; '.join(wrong)}")
