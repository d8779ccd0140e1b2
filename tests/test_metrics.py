"""Each number of the scorecard gets worse, beyond its interval, when good stories are damaged on purpose."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from storyladder.corpus.sample_stories import sample_stories
from storyladder.measuring.metrics import METRICS, Corpus, measure
from storyladder.measuring.names import hero, words_of
from storyladder.measuring.story_text import Story, opening, sentences

N = 80
SEEN_BY = {metric.name: metric for metric in METRICS}


@cache
def corpus() -> Corpus:
    return Corpus(words_of(sample_stories("tiny", 400)), 60)


@cache
def good_stories() -> tuple[Story, ...]:
    """Sample stories; each one's real continuation is its own."""
    stories = []
    for text in sample_stories("tiny", N, seed=1):
        prompt = opening(text)
        rest = text[len(prompt) :]
        stories.append(Story(prompt=prompt, rest=rest, ended=True, reference=rest, forced=rest, copied_words=10))
    return tuple(stories)


def told(story: Story, text: str, **changes: Any) -> Story:
    """The story with another text, whose prompt is the same."""
    assert text.startswith(story.prompt)
    return dataclasses.replace(story, rest=text[len(story.prompt) :], **changes)


def shuffled(story: Story) -> Story:
    first, *others = sentences(story.text[len(story.prompt) :])
    others = [first, *others]
    random.Random(story.text).shuffle(others)
    return told(story, " ".join([story.prompt, *others]))


def exchanged(story: Story) -> Story:
    name = hero(story.text, corpus().words.names)
    other = next(known for known in sorted(corpus().words.names) if known not in story.text)
    return story if name is None else dataclasses.replace(story, rest=story.rest.replace(name, other))


def looping(story: Story) -> Story:
    parts = sentences(story.text)
    half = len(parts) // 2
    return told(story, " ".join([story.prompt, *sentences(story.rest)[:half], *[parts[half]] * half]))


def cut(story: Story) -> Story:
    return told(story, story.text[: len(story.text) * 3 // 4].rstrip(".!?\"' "), ended=False)


def unclosed(story: Story) -> Story:
    return told(story, story.text[::-1].replace('"', "", 1)[::-1])


def gibberish(story: Story) -> Story:
    words = story.rest.split(" ")
    return told(story, story.prompt + " ".join("blorfz" if i % 9 == 8 else word for i, word in enumerate(words)))


def run_on(story: Story) -> Story:
    return told(story, story.prompt + story.rest.replace(". ", " and "))


def copied(story: Story) -> Story:
    return dataclasses.replace(story, copied_words=len(story.text.split()))


def all_alike(story: Story) -> Story:
    return dataclasses.replace(good_stories()[0])


def off_the_track(story: Story) -> Story:
    """What another story says."""
    place = good_stories().index(story)
    other = good_stories()[(place + 1) % N].rest
    return dataclasses.replace(story, rest=other, forced=other)


DAMAGES: dict[Callable[[Story], Story], tuple[str, ...]] = {
    shuffled: ("introduced_first",),
    exchanged: ("hero_kept", "hero_exchanged"),
    looping: ("repeated_4grams", "compression_ratio"),
    cut: ("finished",),
    unclosed: ("unclosed_quotes",),
    gibberish: ("unknown_words",),
    run_on: ("sentence_length", "reading_grade"),
    copied: ("longest_copy", "long_copies"),
    all_alike: ("self_bleu", "distinct_1", "distinct_2"),
    off_the_track: ("bleu", "bleu_2", "bleu_forced", "bleu_with_prompt"),
}


def numbers(stories: tuple[Story, ...] | list[Story]) -> dict[str, dict[str, Any]]:
    return {name: measure(metric, stories, corpus()) for name, metric in SEEN_BY.items()}


@cache
def good_numbers() -> dict[str, dict[str, Any]]:
    return numbers(good_stories())


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_seen(damage: Callable[[Story], Story]) -> None:
    damaged = [damage(story) for story in good_stories()]
    for name in DAMAGES[damage]:
        before, after = good_numbers()[name], measure(SEEN_BY[name], damaged, corpus())
        higher, lower = after["low"] > before["high"], after["high"] < before["low"]
        assert {"higher": lower, "lower": higher, "closer": higher or lower}[before["better"]], (name, before, after)


def test_every_number_sees_some_damage() -> None:
    assert {name for names in DAMAGES.values() for name in names} == SEEN_BY.keys()


def test_good_stories_score_well() -> None:
    found = {name: number["value"] for name, number in good_numbers().items()}
    assert found["finished"] == 1.0 and found["unclosed_quotes"] == 0.0
    assert found["hero_kept"] > 0.7 and found["introduced_first"] > 0.8
    assert found["unknown_words"] < 0.01
    assert found["bleu"] == found["bleu_forced"] == pytest.approx(100.0)


def test_every_value_lies_in_its_interval_with_its_explanation() -> None:
    assert len(SEEN_BY) == len(METRICS)
    for name, number in good_numbers().items():
        assert number["low"] <= number["value"] <= number["high"], name
        assert number["about"].endswith(".") and number["better"] in ("higher", "lower", "closer")
        assert number["n"] <= N
    signed = {name for name, number in good_numbers().items() if "signature" in number}
    assert signed == {"self_bleu", "bleu", "bleu_2", "bleu_forced", "bleu_with_prompt", "reading_grade"}


@pytest.mark.parametrize("rest", ["", "\n", "!!!", " the"])
def test_stories_without_words_have_a_gap_and_no_crash(rest: str) -> None:
    stories = [Story(prompt="Once", rest=rest, ended=True, reference=" upon a time.", forced="") for _ in range(3)]
    found = numbers(stories)
    for name in ("distinct_1", "self_bleu", "repeated_4grams", "hero_kept", "introduced_first"):
        assert found[name]["value"] is None and found[name]["n"] == 0
    assert found["bleu"]["value"] == pytest.approx(0.0, abs=1.0)


def test_real_stories_have_no_forced_continuation() -> None:
    real = [dataclasses.replace(story, forced=None) for story in good_stories()]
    assert measure(SEEN_BY["bleu_forced"], real, corpus())["value"] is None


def test_a_share_takes_wilsons_interval() -> None:
    number = good_numbers()["finished"]
    assert (number["value"], number["high"]) == (1.0, 1.0)
    assert number["low"] == pytest.approx(N / (N + 3.8415), abs=1e-4)
