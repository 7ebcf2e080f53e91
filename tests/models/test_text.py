"""Captions become ids and a mask, and padding says nothing."""

from __future__ import annotations

import pytest
import torch

from ldm.conditioning.text.bert import BertConfig, BertTextEncoder
from ldm.conditioning.text.tokenizers import SPECIAL_TOKENS, Tokenizer

CAPTIONS = ["a dog playing a trumpet", "Three blue cats!", "a big apple to the left of a small cow"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CAPTIONS, vocab_size=120, max_length=10)


def test_ids_are_padded_cut_and_bracketed(tokenizer: Tokenizer) -> None:
    pad, _, cls, sep, _ = range(5)
    ids, mask = tokenizer(["", "A Dog", "dog " * 30])
    assert ids.shape == mask.shape == (3, 10)
    assert ids.dtype == mask.dtype == torch.int64
    assert ids[0].tolist() == [cls, sep] + [pad] * 8
    assert ids[2, 0] == cls
    assert ids[2, -1] == sep
    assert mask.sum(1).tolist() == [2, (ids[1] != pad).sum().item(), 10]
    assert tokenizer.pieces[:5] == list(SPECIAL_TOKENS)


def test_no_caption_makes_no_rows(tokenizer: Tokenizer) -> None:
    ids, mask = tokenizer([])
    assert ids.shape == mask.shape == (0, 10)


def test_letter_case_does_not_matter_and_the_vocabulary_is_the_same_every_time(tokenizer: Tokenizer) -> None:
    assert torch.equal(tokenizer(["THREE blue Cats"])[0], tokenizer(["three blue cats"])[0])
    again = Tokenizer.train(CAPTIONS, vocab_size=120, max_length=10)
    assert again.pieces == tokenizer.pieces
    assert tokenizer.vocab_size == len(tokenizer.pieces) <= 120


def test_a_tokenizer_comes_back_from_its_json(tokenizer: Tokenizer) -> None:
    again = Tokenizer.from_json(tokenizer.to_json(), 10)
    assert torch.equal(again(CAPTIONS)[0], tokenizer(CAPTIONS)[0])
    with pytest.raises(ValueError, match="EOF"):
        Tokenizer.from_json(tokenizer.to_json()[:-20], 10)


@pytest.mark.parametrize("use_mask", [True, False])
def test_the_mask_hides_padding_only_where_the_config_says_so(tokenizer: Tokenizer, use_mask: bool) -> None:
    config = BertConfig(hidden_size=16, num_hidden_layers=2, max_length=10, use_attention_mask=use_mask)
    encoder = BertTextEncoder(config, tokenizer.vocab_size)
    ids, mask = tokenizer(["a dog"])
    length = int(mask.sum())
    context = encoder(ids, mask).context
    alone = encoder(ids[:, :length], mask[:, :length]).context
    assert context.shape == (1, 10, 16)
    assert torch.allclose(context[:, :length], alone, atol=1e-6) is use_mask
