"""A BERT (Devlin et al. 2019) as text encoder.

Parameters are named as in transformers' `BertModel`, and the numbers are the same; written here because importing that
one takes longer than generating an image.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.conditioning.text.encoder import Encoded, TextEncoder, TextSection, initialise
from ldm.conditioning.text.format import Format
from ldm.config.section import Count, Width, check_divisible
from ldm.models.attention import attend


class BertConfig(TextSection):
    """A BERT (Devlin et al. 2019); without a source its WordPiece vocabulary is made from the captions."""

    kind: Literal["bert"] = "bert"
    vocab_size: Width = 2048  # upper bound; the tokenizer may find fewer pieces in the captions
    max_length: Width = 32
    hidden_size: Width = 256
    num_hidden_layers: Count = 4
    num_attention_heads: Width = 4
    use_attention_mask: bool = True

    @model_validator(mode="after")
    def _width_divides(self) -> BertConfig:
        if self.source is None or "num_attention_heads" in self.model_fields_set:  # else the source has their number
            check_divisible("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        return self


class BertEmbeddings(nn.Module):
    """The sum of what a token is and where it stands, normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_length, width)
        self.token_type_embeddings = nn.Embedding(2, width)  # first or second sentence; captions are always first
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (B, L) to (B, L, D)."""
        places = self.position_embeddings.weight[: ids.shape[1]]
        return self.LayerNorm(self.word_embeddings(ids) + places + self.token_type_embeddings.weight[0])


class BertLayer(nn.Module):
    """Self-attention and a feed-forward layer, each added to its input and then normalised."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        projections = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"self": projections, "output": _added(width, width)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, 4 * width)})
        self.output = _added(4 * width, width)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Map tokens (B, L, D) to the same shape; a mask (B, 1, 1, L) is true at tokens to attend to."""
        projected = [layer(tokens) for layer in self.attention["self"].values()]
        queries, keys, values = (h.unflatten(-1, (self.heads, -1)).transpose(1, 2) for h in projected)
        h = attend(queries, keys, values, mask)  # (B, heads, L, D / heads)
        h = h.transpose(1, 2).flatten(2)  # (B, L, D)
        tokens = _add(self.attention["output"], h, tokens)
        return _add(self.output, F.gelu(self.intermediate["dense"](tokens)), tokens)


def _added(in_width: int, width: int) -> nn.ModuleDict:
    return nn.ModuleDict({"dense": nn.Linear(in_width, width), "LayerNorm": nn.LayerNorm(width, eps=1e-12)})


def _add(layers: nn.ModuleDict, h: Tensor, tokens: Tensor) -> Tensor:
    return layers["LayerNorm"](layers["dense"](h) + tokens)


FORMAT = Format(
    model_types=("bert",),
    architecture="BertModel",
    names={
        "max_length": "max_position_embeddings",
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_hidden_layers": "num_hidden_layers",
        "num_attention_heads": "num_attention_heads",
        "use_attention_mask": "use_attention_mask",  # what StableDiffusionPipeline looks for
    },
    defaults={"use_attention_mask": False},
    fixed={
        "hidden_act": ("gelu",),
        "type_vocab_size": (2,),
        "layer_norm_eps": (1e-12,),
        "pad_token_id": (0,),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
    },
    feed_forward="intermediate_size",
    written={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    renamed={r"^bert\.": "", r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"},
    unused=r"embeddings\.position_ids$|pooler\.|cls\.",
)


class BertTextEncoder(TextEncoder):
    """A BERT without a pooler and without dropout, small enough to be trained together with the U-Net.

    `vocab_size` replaces the configuration's, which is the bound given to a tokenizer in training.
    """

    section = BertConfig
    format = FORMAT
    config: BertConfig

    def __init__(self, config: BertConfig, vocab_size: int | None = None) -> None:
        super().__init__(config if vocab_size is None else config.model_copy(update={"vocab_size": vocab_size}))
        self.embeddings = BertEmbeddings(self.config)
        layers = [BertLayer(config.hidden_size, config.num_attention_heads) for _ in range(config.num_hidden_layers)]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})
        self.apply(initialise)

    def forward(self, ids: Tensor, mask: Tensor) -> Encoded:
        """Return the context (B, L, D) of token ids (B, L); with `use_attention_mask` no token looks at padding."""
        visible = mask.bool()[:, None, None, :] if self.config.use_attention_mask else None  # (B, 1, 1, L)
        tokens = self.embeddings(ids)
        for layer in self.encoder["layer"]:
            tokens = layer(tokens, visible)
        return Encoded(tokens)

    def extra_tensors(self) -> dict[str, Tensor]:
        """Return a zero pooler, which transformers' `BertModel` expects and nothing here uses."""
        like = self.embeddings.LayerNorm.weight
        return {
            "pooler.dense.weight": like.new_zeros(len(like), len(like)).detach(),
            "pooler.dense.bias": like.new_zeros(len(like)).detach(),
        }
