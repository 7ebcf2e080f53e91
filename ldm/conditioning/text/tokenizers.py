"""Captions to token ids: WordPiece (BERT), byte-level BPE (CLIP) and unigram (T5) vocabularies."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ldm.data.sources import Source

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CLIP_BRACKETS = ("<|startoftext|>", "<|endoftext|>")
CLIP_MERGES = 49152 - 256 - 2  # of which open_clip's file holds more than CLIP uses
WORD_END = "</w>"
# Bracketing tokens, English endings, letters together, single digits, other signs together.
CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class Window(NamedTuple):
    """As much of a caption as its encoder reads at once, with what the vocabulary puts around it, padded."""

    ids: tuple[int, ...]  # of `max_length` tokens
    mask: tuple[int, ...]  # 1 at tokens and 0 at padding
    spans: tuple[tuple[int, int] | None, ...]  # of each token in the caption's characters; None: it is not from there


class Tokenizer:
    """Captions to token ids, with what the vocabulary puts around them, cut and padded to `max_length`."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, max_length: int, pad_token: str = "[PAD]") -> None:
        pad_id = tokenizer.token_to_id(pad_token)
        if pad_id is None:
            raise ValueError(f"the vocabulary has no {pad_token!r} to pad with")
        self.max_length, self.pad_token = max_length, pad_token
        self._tokenizer = tokenizer
        self._tokenizer.add_special_tokens([pad_token])  # found in a caption it means itself, as in transformers
        self._tokenizer.enable_truncation(max_length)
        self._tokenizer.enable_padding(length=max_length, pad_id=pad_id, pad_token=pad_token)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int, max_length: int) -> Tokenizer:
        """Train a WordPiece vocabulary of at most `vocab_size` pieces on captions (Schuster and Nakajima 2012)."""
        return cls(word_pieces(_vocabulary(list(captions), vocab_size)), max_length)

    @classmethod
    def open_clip(cls, max_length: int) -> Tokenizer:
        """Load the CLIP vocabulary that open_clip contains, padded with the token of id 0, as open_clip pads.

        Two things are as in the folders of CLIP, and not as in open_clip: wrongly decoded characters and HTML entities
        are not repaired first, and a lone "!" in a caption is the token of padding.
        """
        from open_clip.tokenizer import bytes_to_unicode, default_bpe

        with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
            lines = file.read().split("\n")[1 : 1 + CLIP_MERGES]
        letters = list(bytes_to_unicode().values())
        merges = [(left, right) for left, right in (line.split() for line in lines)]
        words = [*letters, *(letter + WORD_END for letter in letters), *(left + right for left, right in merges)]
        vocabulary = {word: number for number, word in enumerate([*words, *CLIP_BRACKETS])}
        return cls(byte_pairs(vocabulary, merges), max_length, pad_token=letters[0])

    @classmethod
    def from_json(cls, text: str, max_length: int, pad_token: str = "[PAD]") -> Tokenizer:
        """Load the tokenizer that `to_json` wrote; raises ValueError for anything else."""
        try:
            tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing more special
            raise ValueError(str(error)) from error
        return cls(tokenizer, max_length, pad_token)

    def to_json(self) -> str:
        """Return the tokenizer in the format of the `tokenizers` library."""
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

    def windows(self, caption: str) -> list[Window]:
        """Split a caption into as many windows as it needs, at least one; `__call__` returns only the first."""
        first = self._tokenizer.encode(caption)
        return [_window(encoding) for encoding in (first, *first.overflowing)]


def _window(encoding: tokenizers.Encoding) -> Window:
    """Return the window of one encoding, whose padding is marked as special as well."""
    marks = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
    spans = tuple(None if special else (start, end) for (start, end), special in marks)
    return Window(tuple(encoding.ids), tuple(encoding.attention_mask), spans)


def _vocabulary(captions: list[str], vocab_size: int) -> dict[str, int]:
    """Return pieces and their ids, the same every time for the same captions.

    The library numbers pieces within words as it meets them, in an order that changes from run to run, and breaks ties
    by number. As special tokens they come first, in the order given.
    """
    tokenizer = _words(models.WordPiece(unk_token="[UNK]"))
    normalised = (tokenizer.normalizer.normalize_str(caption) for caption in captions)
    words = {word for text in normalised for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)}
    within = sorted({"##" + letter for word in words for letter in word[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL_TOKENS, *within], show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer.get_vocab()


def word_pieces(vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    """Return BERT's tokenizer (Devlin et al. 2019): lower case, WordPiece, [CLS] and [SEP] around."""
    tokenizer = _words(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens([token for token in SPECIAL_TOKENS if token in vocabulary])
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _words(model: models.WordPiece) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def byte_pairs(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """Return CLIP's tokenizer (Radford et al. 2021): lower case, byte pairs within words, start and end around."""
    start, end = CLIP_BRACKETS
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token=end, end_of_word_suffix=WORD_END, continuing_subword_prefix="")
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = tokenizers.Regex(CLIP_WORDS)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([start, end])
    tokenizer.post_processor = processors.RobertaProcessing(
        (end, vocabulary[end]), (start, vocabulary[start]), trim_offsets=False, add_prefix_space=False
    )
    return tokenizer


def train_tokenizer(source: Source, vocab_size: int, max_length: int, accelerator: Accelerator) -> Tokenizer:
    """Train a vocabulary on the captions of a data source in the main process, and send it to all processes."""
    from accelerate.utils import broadcast_object_list

    from ldm.data.preview import all_captions

    made: list[str | None] = [None]
    if accelerator.is_main_process:
        made[0] = Tokenizer.train(all_captions(source), vocab_size, max_length).to_json()
    broadcast_object_list(made)
    assert made[0] is not None
    return Tokenizer.from_json(made[0], max_length)
