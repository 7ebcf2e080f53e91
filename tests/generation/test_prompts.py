"""Prompts with weights and prompts longer than the encoder's window, for every kind of text encoder."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from torch import Tensor, nn

from ldm.checkpoint.pipeline import Pipeline
from ldm.conditioning.text.conditioning import Encoders, TextConditioning
from ldm.conditioning.text.encoder import make_text_encoder
from ldm.conditioning.text.prompt_weights import parse
from ldm.conditioning.text.prompts import Prompts, weigh
from ldm.errors import UserError, UserNote
from ldm.generation import Request, TextToImage


def open_clip() -> Pipeline:
    """CLIP's words through the smallest architecture of open_clip."""
    from ldm.conditioning.text.open_clip import OpenCLIPConfig
    from ldm.conditioning.text.sources import source_config
    from ldm.conditioning.text.tokenizers import Tokenizer

    config = source_config(OpenCLIPConfig(model="RN50"))
    encoder, tokenizer = make_text_encoder(config), Tokenizer.open_clip(config.max_length)
    tiny.speaking(encoder)
    return replace(tiny.sd_2(), conditionings={"text": TextConditioning([(encoder, tokenizer)])})


KINDS: dict[str, Callable[[], Pipeline]] = {
    "clip": tiny.sd_1,
    "clip, penultimate": tiny.sd_2,
    "two clips": tiny.sdxl,
    "ldm_bert": tiny.ldm_text,
    "bert": tiny.bert,
    "t5": tiny.t5,
    "open_clip": open_clip,
}
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name == "open_clip" else []) for name in KINDS]
LONG = "a red dog playing a trumpet and two blue cats and " * 10 + "a dog"


@pytest.fixture(scope="module")
def models() -> Callable[[str], Pipeline]:
    made: dict[str, Pipeline] = {}
    return lambda name: made.setdefault(name, made.get(name) or with_a_mean(KINDS[name]()))


def with_a_mean(pipeline: Pipeline) -> Pipeline:
    """Encoders whose context has a mean, as trained ones' has; a fresh layer norm's is zero but for rounding."""
    for encoder, _ in encoders_of(pipeline):
        for name, weight in encoder.named_parameters():
            if weight.ndim == 1 and name.endswith("bias"):
                nn.init.normal_(weight, 0.3, 0.1)
    return pipeline


def encoders_of(pipeline: Pipeline) -> Encoders:
    return pipeline.conditionings["text"].encoders


@torch.no_grad()
def encode(pipeline: Pipeline, *texts: str, **options: Any) -> Tensor:
    return Prompts(encoders_of(pipeline)).encode(texts, Request(prompts=texts, **options)).context


@torch.no_grad()
def plain(pipeline: Pipeline, *texts: str) -> Tensor:
    return torch.cat(
        [encoder(*tokenizer(list(texts))).context for encoder, tokenizer in encoders_of(pipeline)],
        dim=-1,
    )


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [  # the first seven are the examples of AUTOMATIC1111's own documentation of its parser
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("", []),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.3 * 1.1 * 1.1),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.1**4),
                (".", 1.1),
            ],
        ),
        ("[less] (none:0) (:1.2)", [("less", 1 / 1.1), (" ", 1.0), ("none", 0.0), (" ", 1.0)]),
        (r"at 10:30) and (a:b) \\(c:1.5)", [("at 10:30) and ", 1.0), ("a:b", 1.1), (" \\", 1.0), ("c", 1.5)]),
    ],
)
def test_brackets_weigh_as_users_know_it(prompt: str, expected: list[tuple[str, float]]) -> None:
    read = parse(prompt)
    runs = itertools.groupby(zip(read.text, np.round(read.weights, 9), strict=True), key=lambda pair: pair[1])
    found = [("".join(letter for letter, _ in run), weight) for weight, run in runs]
    assert [text for text, _ in found] == [text for text, _ in expected]
    np.testing.assert_allclose([weight for _, weight in found], [weight for _, weight in expected])


@pytest.mark.parametrize("name", NAMES)
def test_without_weights_a_single_window_is_unchanged_bit_for_bit(name: str, models: Callable[[str], Pipeline]) -> None:
    pipeline, texts = models(name), ("a red dog", "", "a dog")
    expected = plain(pipeline, *texts)
    for options in ({}, {"prompt_syntax": "weighted"}, {"prompt_syntax": "a1111"}, {"long_prompts": True}):
        assert torch.equal(encode(pipeline, *texts, **options), expected)
    assert torch.equal(encode(pipeline, "(a red:1) dog", prompt_syntax="a1111")[0], encode(pipeline, "a red dog")[0])
    assert torch.equal(encode(pipeline, LONG), plain(pipeline, LONG))


# Where the tokens of "red" stand in "a red dog": CLIP's tiny vocabulary has letters, T5's a space before them.
RED = dict.fromkeys(["clip", "clip, penultimate", "two clips"], slice(2, 5))
RED |= dict.fromkeys(["ldm_bert", "bert", "open_clip"], slice(2, 3)) | {"t5": slice(3, 6)}


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_multiplies_the_tokens_of_its_words_and_no_others(
    name: str, models: Callable[[str], Pipeline]
) -> None:
    pipeline = models(name)
    contexts = plain(pipeline, "a red dog")[0].split(
        [encoder.config.hidden_size for encoder, _ in encoders_of(pipeline)], dim=1
    )
    weights = torch.ones(len(contexts[0]), 1)
    weights[RED[name]] = 1.5
    expected = [context * weights for context in contexts]
    torch.testing.assert_close(
        encode(pipeline, "a (red:1.5) dog", prompt_syntax="weighted")[0], torch.cat(expected, dim=1)
    )
    kept = [changed * (context.mean() / changed.mean()) for context, changed in zip(contexts, expected, strict=True)]
    torch.testing.assert_close(
        encode(pipeline, "a (red:1.5) dog", prompt_syntax="a1111")[0], torch.cat(kept, dim=1), rtol=1e-4, atol=1e-5
    )


def test_a_window_without_a_mean_is_weighted_and_not_scaled() -> None:
    context, weights = torch.tensor([[[1.0, -1.0], [2.0, -2.0]]]), torch.tensor([[1.0, 1.5]])
    found = weigh(context, weights, keep_mean=True)
    assert torch.equal(found, torch.tensor([[[1.0, -1.0], [3.0, -3.0]]]))


@pytest.mark.parametrize("name", NAMES)
def test_a_long_prompt_is_windows_with_ends_of_their_own_behind_each_other(
    name: str, models: Callable[[str], Pipeline]
) -> None:
    pipeline = models(name)
    found = encode(pipeline, LONG, "a dog", long_prompts=True)
    expected, starts = [], []
    for encoder, tokenizer in encoders_of(pipeline):
        raw = tokenizer._tokenizer  # a tokenizer that neither cuts nor pads gives all tokens
        bare, empty = type(raw).from_str(raw.to_str()), tokenizer([""])[0][0]
        bare.no_truncation()
        bare.no_padding()
        ids, ends = bare.encode(LONG, add_special_tokens=False).ids, bare.encode("").ids
        opening, closing = (ends[:-1], ends[-1:])  # T5 has no opening
        room, rows = tokenizer.max_length - len(ends), []
        for start in range(0, len(ids), room):
            row = [*opening, *ids[start : start + room], *closing]
            rows.append(row + empty.tolist()[-1:] * (tokenizer.max_length - len(row)))
        mask = torch.ones(len(rows), tokenizer.max_length, dtype=torch.int64)
        mask[-1, len(ids) - room * (len(rows) - 1) + len(ends) :] = 0
        with torch.no_grad():
            expected.append(encoder(torch.tensor(rows), mask))
        starts.append(len(rows))
    assert starts[0] > 1
    torch.testing.assert_close(found[0], torch.cat([each.context.flatten(0, 1) for each in expected], dim=-1))
    short = torch.cat([plain(pipeline, "a dog")[0], *[plain(pipeline, "")[0]] * (starts[0] - 1)])
    torch.testing.assert_close(found[1], short)
    with torch.no_grad():
        pooled = Prompts(encoders_of(pipeline)).encode([LONG], Request(prompts=(LONG,), long_prompts=True)).pooled
    if name == "two clips":  # that of the first window
        torch.testing.assert_close(pooled, expected[-1].pooled[:1])
    else:
        assert pooled is None


def test_weights_reach_the_tokens_of_later_windows(models: Callable[[str], Pipeline]) -> None:
    pipeline = models("bert")
    both = {"long_prompts": True, "prompt_syntax": "weighted"}
    weighted = encode(pipeline, LONG.replace("a dog", "a (dog:0.5)"), **both)[0]
    context = encode(pipeline, LONG, long_prompts=True)[0]
    [(_, tokenizer)] = encoders_of(pipeline)
    [at] = (weighted != context).any(1).nonzero().tolist()
    assert at[0] > tokenizer.max_length
    torch.testing.assert_close(weighted[at], context[at] / 2)


def draw(pipe: TextToImage, *prompts: str, **options: Any) -> list[np.ndarray]:
    return [np.asarray(image).astype(int) for image in pipe(list(prompts), num_inference_steps=3, **options)]


@pytest.mark.filterwarnings("ignore::ldm.errors.UserNote")
@pytest.mark.parametrize("name", ["bert", "two clips"])
def test_an_image_of_a_long_prompt_does_not_depend_on_its_batch(name: str, models: Callable[[str], Pipeline]) -> None:
    pipe = TextToImage(models(name))
    together = draw(pipe, "a red dog", LONG, "two blue cats", long_prompts=True)
    for seed, prompt in enumerate(("a red dog", LONG, "two blue cats")):
        [alone] = draw(pipe, prompt, seed=seed, long_prompts=True)
        assert np.abs(alone - together[seed]).max() <= 1
    assert np.abs(draw(pipe, LONG, seed=1)[0] - together[1]).max() > 8
    [padded] = draw(pipe, "a red dog", negative_prompt=LONG, long_prompts=True)  # the prompt to the negative's length
    assert np.abs(padded - together[0]).max() > 8


def test_words_that_are_not_seen_are_reported_in_one_warning(models: Callable[[str], Pipeline]) -> None:
    pipe = TextToImage(models("bert"))
    prompts = ("a red dog playing a trumpet and two blue cats", LONG)
    with pytest.warns(
        UserNote, match=r"\(and 1 more\) is longer than the 12 tokens .* does not see 'blue cats'"
    ) as caught:
        pipe.resolve(Request(prompts=prompts))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.resolve(Request(prompts=prompts, long_prompts=True))
        pipe.resolve(Request(prompts=(*prompts[:1], "a dog"), prompt_syntax="weighted", long_prompts=True))
        pipe.resolve(Request(prompts=("(((a red dog)))",), prompt_syntax="weighted"))


def test_ways_to_read_prompts_raise_errors_where_there_are_none() -> None:
    for options in ({"prompt_syntax": "weighted"}, {"long_prompts": True}):
        message = f"it does not use {next(iter(options))}"
        with pytest.raises(UserError, match=message):
            TextToImage(tiny.of_classes())(classes=1, **options)
        with pytest.raises(UserError, match=message):
            TextToImage(tiny.unconditional())(**options)
    with pytest.raises(UserError, match="no prompt syntax 'compel': choose one of plain, weighted, a1111"):
        Request(prompt_syntax="compel")
