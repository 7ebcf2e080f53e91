"""Our tokenizers make the ids of transformers' and open_clip's, from folders that either wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from ldm.conditioning.text.tokenizer_files import load_tokenizer, save_tokenizer
from ldm.conditioning.text.tokenizers import Tokenizer
from ldm.errors import UserError

LENGTH = 16
CAPTIONS = [
    "",
    " ",
    "a dog playing a trumpet",
    "A Dog PLAYING a Trumpet!!!",
    "three blue cats, and a café",
    "a cafe\u0301 (decomposed)",
    "it's the dog's, isn't it? they're we'll I'd",
    "room 101, 3.14 and 2,000",
    "a\tb\nc  d\u00a0e \u200b f",
    "漢字とかな and 한글",
    "the Straße of İstanbul",
    "emoji 🐶 and 🎺 together 👩‍🚀",
    "dots... dashes -- and __underscores__",
    "#hashtag @someone https://example.org/a?b=c&d",
    "<|endoftext|>",
    "before <|startoftext|> after",
    "a[MASK]b [PAD] </s> <pad> <extra_id_0>",
    "x" * 60,
    "dog " * 40,
    "'s 't 'RE",
    "naïve façade—œuvre “quoted” ‘single’",
    "½ ² ① Ⅷ",
    "ａｆｕｌｌ ｗｉｄｔｈ",
    "ﬁne ligatures",
    "α β γ Ω and я ж Щ",
    "1girl, solo, (masterpiece:1.2), [[best]]",
    "AbCdEfGhIjKl mixedCase snake_case kebab-case",
    "!",
    "!!",
    "a ! b",
    "line\r\nbreak",
    "עברית and العربية",
]


def their_ids(theirs: transformers.PreTrainedTokenizerBase, length: int = LENGTH) -> tuple[torch.Tensor, torch.Tensor]:
    made = theirs(CAPTIONS, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return made.input_ids, made.attention_mask


def assert_same(ours: Tokenizer, theirs: transformers.PreTrainedTokenizerBase) -> None:
    for made, expected in zip(ours(CAPTIONS), their_ids(theirs, ours.max_length), strict=True):
        wrong = [text for text, a, b in zip(CAPTIONS, made.tolist(), expected.tolist(), strict=True) if a != b]
        assert not wrong


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def byte_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`vocab.json` and `merges.txt` of a vocabulary of byte pairs found in the captions, as CLIP's are."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CAPTIONS, trainers.BpeTrainer(vocab_size=900, initial_alphabet=letters, end_of_word_suffix="</w>")
    )
    model = json.loads(tokenizer.to_str())["model"]
    words = ["!", *(word for word in model["vocab"] if word != "!")]
    words += [letter + "</w>" for letter in letters if letter + "</w>" not in words]
    vocabulary = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return folder


PADDING = {
    "Stable Diffusion 1": ({"pad_token": "<|endoftext|>"}, {}, "<|endoftext|>"),
    "Stable Diffusion 2": ({"pad_token": "<|endoftext|>"}, {"pad_token": "!"}, "!"),
    "the second of SDXL": ({"pad_token": "!"}, {"pad_token": "!"}, "!"),
    "a token as a mapping": ({"pad_token": {"__type": "AddedToken", "content": "!", "lstrip": False}}, {}, "!"),
    "no word of it": ({}, {}, "<|endoftext|>"),
    "a new file beside an old one": (
        {"pad_token": "!", "added_tokens_decoder": {}},
        {"pad_token": "<|endoftext|>"},
        "!",
    ),
}


@pytest.mark.parametrize(("config", "special", "pad"), PADDING.values(), ids=PADDING.keys())
def test_clips_tokenizer_makes_the_ids_of_transformers_and_pads_as_its_folder_says(
    byte_pairs: Path, tmp_path: Path, config: dict[str, object], special: dict[str, str], pad: str
) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_text((byte_pairs / name).read_text())
    whole = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, **config}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(whole))
    if special:
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert (ours.pad_token, str(theirs.pad_token)) == (pad, pad)
    assert_same(ours, theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same(load_tokenizer(tmp_path / "theirs"), theirs)
    save_tokenizer(ours, tmp_path / "ours")
    for loader in (transformers.CLIPTokenizer, transformers.AutoTokenizer):
        assert_same(ours, loader.from_pretrained(tmp_path / "ours"))
    (tmp_path / "ours" / "tokenizer.json").unlink()
    assert_same(load_tokenizer(tmp_path / "ours"), theirs)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "added_tokens.json"])
def test_words_of_textual_inversion_beside_the_vocabulary_are_added(
    byte_pairs: Path, tmp_path: Path, file: str
) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_text((byte_pairs / name).read_text())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer", "model_max_length": 16}')
    size = len(json.loads((tmp_path / "vocab.json").read_text()))
    words = {"<my-dog>": size, "corgi-ish": size + 1}
    if file == "added_tokens.json":
        (tmp_path / file).write_text(json.dumps(words))
    else:
        options = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": True, "special": False}
        listed = {str(number): {"content": word, **options} for word, number in words.items()}
        edit(tmp_path / file, added_tokens_decoder=listed)
    ours, theirs = load_tokenizer(tmp_path), transformers.CLIPTokenizer.from_pretrained(tmp_path)
    caption = "a <my-dog> and a corgi-ish cat"
    made = ours([caption])[0][0].tolist()
    assert made == theirs(caption, padding="max_length", max_length=16, truncation=True).input_ids
    assert {size, size + 1} < set(made)
    save_tokenizer(ours, tmp_path / "ours")
    assert load_tokenizer(tmp_path / "ours")([caption])[0][0].tolist() == made
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<my-dog>": size + 7}))
    edit(tmp_path / "tokenizer_config.json", added_tokens_decoder={})
    with pytest.raises(UserError, match="'<my-dog>' has number"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("field", "value"), [("pad_token", "<none>"), ("pad_token", [1]), ("do_lower_case", "yes")])
def test_a_tokenizers_field_that_makes_no_sense_is_an_error_of_one_line(
    field: str, value: object, tmp_path: Path
) -> None:
    save_tokenizer(Tokenizer.train(CAPTIONS, 200, LENGTH), tmp_path)
    (tmp_path / "special_tokens_map.json").unlink()
    edit(tmp_path / "tokenizer_config.json", **{field: value})
    with pytest.raises(UserError, match=r"tokenizer_config\.json") as raised:
        load_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)


def test_open_clips_tokenizer_is_found_in_its_package_and_saved_as_clips(tmp_path: Path) -> None:
    import open_clip

    ours, theirs = Tokenizer.open_clip(77), open_clip.get_tokenizer("ViT-H-14")
    # Both are one where open_clip has nothing to mend; its brackets have other names, and `!` is not special to it.
    normalized = ("|>", "!", "\u2018", "\u201c", "\u200b", "ａ", "ﬁ", "e\u0301")
    captions = [text for text in CAPTIONS if not any(sign in text for sign in normalized)]
    assert len(captions) > 20
    assert torch.equal(ours(captions)[0], theirs(captions))
    assert (ours.vocab_size, ours.pad_token) == (49408, "!")
    save_tokenizer(ours, tmp_path)
    assert_same(load_tokenizer(tmp_path), transformers.CLIPTokenizer.from_pretrained(tmp_path))


@pytest.fixture(scope="module")
def unigram() -> tokenizers.Tokenizer:
    """A vocabulary as T5's: padding, end and unknown first, then pieces, then the numbered gaps."""
    pieces = tokenizers.SentencePieceUnigramTokenizer()
    special = ["<pad>", "</s>", "<unk>"]
    pieces.train_from_iterator(CAPTIONS, vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    model = json.loads(pieces.to_str())["model"]
    gaps = [(f"<extra_id_{number}>", 0.0) for number in range(99, -1, -1)]
    vocabulary = [(piece, score) for piece, score in model["vocab"]] + gaps
    assert [piece for piece, _ in vocabulary[:3]] == special
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
    words = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("▁", "always")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    tokenizer.add_special_tokens([*special, *(gap for gap, _ in gaps)])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def test_t5s_tokenizer_makes_the_ids_of_transformers(unigram: tokenizers.Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(Tokenizer(unigram, LENGTH, "<pad>"), tmp_path)
    theirs = transformers.T5TokenizerFast.from_pretrained(tmp_path)
    assert_same(load_tokenizer(tmp_path), theirs)
    assert_same(load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path))
    theirs.save_pretrained(tmp_path / "theirs")
    edit(tmp_path / "theirs" / "tokenizer_config.json", model_max_length=10**30)
    assert_same(load_tokenizer(tmp_path / "theirs", max_length=9), theirs)


@pytest.mark.parametrize("options", [{}, {"do_lower_case": False}, {"do_lower_case": True, "strip_accents": False}])
@pytest.mark.parametrize("whole", [True, False])
def test_berts_tokenizer_follows_its_folder_in_letter_case_and_accents(
    options: dict[str, bool], whole: bool, tmp_path: Path
) -> None:
    save_tokenizer(Tokenizer.train(CAPTIONS, 200, LENGTH), tmp_path)
    pieces = (tmp_path / "vocab.txt").read_text()
    (tmp_path / "vocab.txt").write_text(pieces + "Dog\n##OG\ncafé\n")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "model_max_length": LENGTH, **options})
    )
    (tmp_path / "tokenizer.json").unlink()
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    if whole:
        theirs.save_pretrained(tmp_path / "theirs")
    ours = load_tokenizer(tmp_path / "theirs" if whole else tmp_path)
    assert_same(ours, theirs)
    save_tokenizer(ours, tmp_path / "ours")
    assert_same(ours, transformers.BertTokenizer.from_pretrained(tmp_path / "ours"))


@pytest.mark.parametrize("file", ["vocab.json", "merges.txt"])
def test_a_cut_off_vocabulary_is_an_error_of_one_line(byte_pairs: Path, tmp_path: Path, file: str) -> None:
    for name in ("vocab.json", "merges.txt"):
        text = (byte_pairs / name).read_text()
        (tmp_path / name).write_text(text[: len(text) // 2 - 3] + "x y z" if name == file else text)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer", "model_max_length": 16}')
    with pytest.raises(UserError, match=r"is not valid JSON|no vocabulary of a CLIP") as raised:
        load_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)
