"""Captions: true, varied, grammatical, and made of few words."""

from __future__ import annotations

import re

import pytest

from ldm.data.scenes import Scene, concepts, make_scene
from ldm.data.scenes.vocabulary import named, plural_of, shared_names, with_article

MANY = 400


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(5, index, "train", 100) for index in range(MANY)]


def test_there_are_three_to_five_different_ones_and_always_the_same(scenes):
    for scene in scenes:
        captions = scene.captions()
        assert 3 <= len(captions) <= 5
        assert len(set(captions)) == len(captions)
        assert Scene.from_record(scene.to_record()).captions() == captions


def test_articles_agree_with_what_follows(scenes):
    for caption in (caption for scene in scenes for caption in scene.captions()):
        for article, word in re.findall(r"\b(an?) (\w+)", caption):
            begins_with_vowel = word[0] in "aeiou" and word != "unicorn"
            assert (article == "an") == begins_with_vowel, caption


def test_they_are_plain_lower_case_without_gaps_or_stray_marks(scenes):
    for caption in (caption for scene in scenes for caption in scene.captions()):
        assert re.fullmatch(r"[a-z0-9'-]+( [a-z0-9'-]+)*", caption), caption


def test_the_first_names_every_thing_its_colour_and_the_background(scenes):
    for scene in scenes:
        first = scene.captions()[0]
        for thing in scene.things:
            concept = named(thing.name)
            assert (concept.plural if scene.kind == "count" else concept.name) in first
            assert thing.colour is None or thing.colour in first
        background = scene.background
        if background.kind == "flat" and background.name != "white":
            assert first.endswith(f"{background.name} background")


def test_counts_are_said_in_words_and_in_digits(scenes):
    counted = [scene for scene in scenes if scene.kind == "count"]
    words = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
    assert {len(scene.things) for scene in counted} == set(words)
    assert all(scene.captions()[0].startswith(words[len(scene.things)] + " ") for scene in counted)
    digits = [scene for scene in counted if any(c.startswith(f"{len(scene.things)} ") for c in scene.captions())]
    assert len(digits) > len(counted) / 4


def test_the_vocabulary_stays_small(scenes):
    words = {word for scene in scenes for caption in scene.captions() for word in caption.split()}
    assert len(words) < 320


def test_corgi_is_a_common_name_of_the_dog():
    dogs = [scene for index in range(500) if "dog" in (scene := make_scene(6, index, "train", 12)).labels()]
    with_corgi = [scene for scene in dogs if any("corgi" in caption for caption in scene.captions())]
    assert len(dogs) > 60
    assert len(with_corgi) > len(dogs) / 10


def test_the_caption_of_a_dog_playing_a_trumpet():
    for index in range(200):
        scene = make_scene(0, index, "test", 3)
        if scene.kind == "playing":
            assert scene.captions()[0].startswith("a dog playing a trumpet")
            return
    raise AssertionError("no such scene among 200 of the test split")


@pytest.mark.parametrize(
    ("name", "phrase", "plural"),
    [
        ("apple", "an apple", "apples"),
        ("unicorn", "a unicorn", "unicorns"),
        ("hourglass", "an hourglass", "hourglasses"),
        ("strawberry", "a strawberry", "strawberries"),
        ("monkey", "a monkey", "monkeys"),
        ("torch", "a torch", "torches"),
    ],
)
def test_articles_and_regular_plurals(name, phrase, plural):
    assert with_article(name) == phrase
    assert plural_of(name) == plural


def test_irregular_plurals_are_in_the_table():
    plurals = {concept.name: concept.plural for concept in concepts()}
    expected = {"mouse": "mice", "fish": "fish", "wolf": "wolves", "snowman": "snowmen", "tooth": "teeth"}
    assert {name: plurals[name] for name in expected} == expected


def test_the_mix_relations_has_more_relations_and_exact_captions():
    made = [make_scene(3, index, "train", 60, "relations") for index in range(300)]
    described = sum(scene.kind not in ("one", "coloured") for scene in made) / len(made)
    assert described > 0.7
    for scene in made:
        said = scene.captions(exact=True)
        assert said[0] == scene.captions()[0]
        assert 2 <= len(said) <= 5
        for caption in said:
            bare = re.sub("(motor|kick) scooter|top hat", "", caption)  # whole names of theirs
            assert not re.search(r"\b(hat|scooter)s?\b", bare)
            if scene.kind == "beside":
                assert "left of" in caption or "right of" in caption
    assert shared_names() == {"hat", "scooter"}
