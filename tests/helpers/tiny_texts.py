"""A small CLIP text encoder's configuration and its tokenizer."""

from tokenizers import pre_tokenizers

from ldm.conditioning.text.clip import CLIPConfig
from ldm.conditioning.text.tokenizers import CLIP_BRACKETS, Tokenizer, byte_pairs

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
WORDS = [*LETTERS, *(letter + "</w>" for letter in LETTERS), *CLIP_BRACKETS]
CLIP = CLIPConfig(
    vocab_size=len(WORDS),
    max_length=24,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    hidden_act="gelu",
    eos_token_id=len(WORDS) - 1,
)


def clip_tokenizer() -> Tokenizer:
    return Tokenizer(byte_pairs({word: number for number, word in enumerate(WORDS)}, []), 24, "!")
