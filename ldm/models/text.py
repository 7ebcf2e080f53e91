"""Captions to the context that the U-Net attends to: a WordPiece vocabulary and a BERT (Devlin et al. 2019).

Parameters are named as in transformers' `BertModel`, and the numbers are the same; written here because importing that
one takes longer than drawing a picture.
"""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.config import BertConfig
from ldm.models.attention import attend

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Tokenizer:
    """Captions to token ids: lower case, WordPiece, [CLS] and [SEP] around, cut and padded to `max_length`."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, max_length: int) -> None:
        self.max_length = max_length
        self._tokenizer = tokenizer
        self._tokenizer.enable_truncation(max_length)
        self._tokenizer.enable_padding(length=max_length, pad_id=0, pad_token="[PAD]")

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int, max_length: int) -> Tokenizer:
        """A vocabulary of at most `vocab_size` pieces (Schuster and Nakajima 2012) found in the captions."""
        captions = list(captions)
        vocabulary = _vocabulary(captions, vocab_size)
        tokenizer = _word_pieces(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
        tokenizer.decoder = decoders.WordPiece()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
        )
        return cls(tokenizer, max_length)

    @classmethod
    def from_json(cls, text: str, max_length: int) -> Tokenizer:
        """The tokenizer that `to_json` wrote; raises ValueError for anything else."""
        try:
            tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing more special
            raise ValueError(str(error)) from error
        return cls(tokenizer, max_length)

    def to_json(self) -> str:
        """All of it, in the format of the `tokenizers` library."""
        return self._tokenizer.to_str()

    @property
    def vocab_size(self) -> int:
        """Number of pieces, special tokens included."""
        return self._tokenizer.get_vocab_size()

    @property
    def pieces(self) -> list[str]:
        """The vocabulary, in the order of ids."""
        vocabulary = self._tokenizer.get_vocab()
        return sorted(vocabulary, key=vocabulary.__getitem__)

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids (B, L) and the mask (B, L) that is 1 at tokens and 0 at padding, both int64."""
        encodings = self._tokenizer.encode_batch(captions)
        ids = torch.tensor([encoding.ids for encoding in encodings], dtype=torch.int64)
        mask = torch.tensor([encoding.attention_mask for encoding in encodings], dtype=torch.int64)
        return ids.view(-1, self.max_length), mask.view(-1, self.max_length)


def _vocabulary(captions: list[str], vocab_size: int) -> dict[str, int]:
    """Pieces and their ids, the same every time for the same captions.

    The library numbers pieces within words as it meets them, in an order that changes from run to run, and breaks ties
    by number. As special tokens they come first, in the order given.
    """
    tokenizer = _word_pieces(models.WordPiece(unk_token="[UNK]"))
    normalised = (tokenizer.normalizer.normalize_str(caption) for caption in captions)
    words = {word for text in normalised for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)}
    within = sorted({"##" + letter for word in words for letter in word[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL_TOKENS, *within], show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer.get_vocab()


def _word_pieces(model: models.WordPiece) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


class BertEmbeddings(nn.Module):
    """The sum of what a token is and where it stands, normalised."""

    def __init__(self, config: BertConfig, vocab_size: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(vocab_size, width, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_length, width)
        self.token_type_embeddings = nn.Embedding(2, width)  # first or second sentence; captions are always first
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (B, L) to (B, L, D)."""
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
        """Tokens (B, L, D) to the same shape; a mask (B, 1, 1, L) is true at tokens to attend to."""
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


class BertTextEncoder(nn.Module):
    """A BERT without a pooler and without dropout, small enough to be trained together with the U-Net."""

    def __init__(self, config: BertConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.embeddings = BertEmbeddings(config, vocab_size)
        layers = [BertLayer(config.hidden_size, config.num_attention_heads) for _ in range(config.num_hidden_layers)]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})
        self.apply(_initialise)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The context (B, L, D) of token ids (B, L); with `use_attention_mask` no token looks at padding."""
        visible = mask.bool()[:, None, None, :] if self.config.use_attention_mask else None  # (B, 1, 1, L)
        tokens = self.embeddings(ids)
        for layer in self.encoder["layer"]:
            tokens = layer(tokens, visible)
        return tokens


def _initialise(module: nn.Module) -> None:
    """Normal with a standard deviation of 0.02, padding zero (Devlin et al. 2019, their published code)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, 0.0, 0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight[module.padding_idx])
