"""Names without a language model: found by their capitals; heroes kept, lost and exchanged."""

from __future__ import annotations

import itertools

import pytest

from storyladder.corpus.sample_stories import sample_stories
from storyladder.measuring.names import hero, hero_exchanged, hero_kept, names_in, words_of
from storyladder.measuring.story_text import Story, sentences

NAMES = frozenset({"Lily", "Tom", "Ben"})


def story(text: str) -> Story:
    return Story(prompt="", rest=text, ended=True)


def test_a_name_is_capitalized_in_mid_sentence_too() -> None:
    text = "Then Lily ran to her mom, and Mom said hello to Lily, who met Lily-Ann on Monday with Mr Fox. " * 20
    found = words_of([text, "The lily is a flower. " * 2])
    assert found.names == {"Lily-Ann", "Fox"} | {"Lily"}
    assert {"lily", "mom", "monday", "flower"} <= found.vocabulary and "Lily" not in found.vocabulary
    assert "Lily" not in words_of([text, "The lily is a flower. " * 3]).names  # 40 of 43 uses are below 95 %


def test_the_start_of_a_sentence_or_of_speech_makes_no_name() -> None:
    text = 'Then it fell. Then she said, "Then we go." Suddenly all ran. '
    assert words_of([text] * 50).names == frozenset()


def test_a_large_text_needs_more_uses_of_a_name() -> None:
    few = "we met Zog, " * 5
    assert words_of([few]).names == {"Zog"}
    assert words_of([few, "and so on it went " * 30_000]).names == frozenset()
    assert words_of([few.replace("Zog", "Zug") * 2, few, "and so on it went " * 30_000]).names == {"Zug"}


def test_the_hero_is_the_name_that_the_first_two_sentences_use_most() -> None:
    assert hero("Tom met Lily. Lily's dog ran. Tom, Tom, Tom!", NAMES) == "Lily"
    assert hero("Tom met Lily. They ran.", NAMES) == "Tom"
    assert hero("A dog ran. It fell. Tom came.", NAMES) is None
    assert names_in("Lily's \u201cTom\u201d, Bens", NAMES) == ["Lily", "Tom"]


@pytest.mark.parametrize(
    ("text", "kept", "exchanged"),
    [
        ("Lily had a cat. It ran off. Lily found it.", True, False),
        ("Lily had a cat. It ran off. She found it.", False, False),
        ("Lily had a cat. It ran off. Ben found it.", False, True),
        ("Lily met Tom. They ran off. Tom was glad.", False, False),  # as often as before: no proof
        ("Lily met Tom. They ran off. Tom was glad, and Tom slept.", False, True),
        ("Lily had a cat. Ben came. Ben and Lily were glad.", True, False),
        ("A cat ran off. It fell. Ben found it.", None, None),
        ("Lily had a cat. It ran.", None, None),
    ],
)
def test_heroes(text: str, kept: bool | None, exchanged: bool | None) -> None:
    assert hero_kept(story(text), NAMES) is kept
    assert hero_exchanged(story(text), NAMES) is exchanged


def test_the_detector_keeps_its_promise_on_good_stories_and_on_damaged_ones() -> None:
    stories = list(sample_stories("tiny", 400))
    names = words_of(stories).names
    heroes = [(text, hero(text, names)) for text in itertools.islice(stories, 150)]
    good = [(text, name) for text, name in heroes if name is not None]
    assert len(good) > 100

    def exchange(text: str, name: str) -> str:
        """Another name from the second sentence on that the story does not have."""
        other = next(known for known in sorted(names) if known not in text)
        first, rest = sentences(text)[0], " ".join(sentences(text)[1:])
        return f"{first} {rest.replace(name, other)}"

    def shares(texts: list[str]) -> tuple[float, float]:
        kept = [hero_kept(story(text), names) for text in texts]
        exchanged = [hero_exchanged(story(text), names) for text in texts]
        return sum(map(bool, kept)) / len(texts), sum(map(bool, exchanged)) / len(texts)

    kept, exchanged = shares([text for text, _ in good])
    assert kept > 0.75 and exchanged < 0.2
    damaged_kept, damaged_exchanged = shares([exchange(text, name) for text, name in good])
    assert damaged_kept < 0.25 and damaged_exchanged > 0.7
