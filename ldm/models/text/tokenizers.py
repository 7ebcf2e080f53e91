"""Captions to token ids: WordPiece (BERT), byte-level BPE (CLIP) and unigram (T5) vocabularies."""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

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
