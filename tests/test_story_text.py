"""Numbers of a story's text: on stories made by hand, whose value can be counted."""

from __future__ import annotations

import subprocess
import sys
import zlib

import pytest
from running import ENVIRONMENT, PROJECT

from storyladder.measuring import story_text as text
from storyladder.measuring.story_text import Story


def story(whole: str, *, prompt: str = "", ended: bool = True) -> Story:
    return Story(prompt=prompt, rest=whole.removeprefix(prompt), ended=ended)


def test_words_are_letters_with_what_joins_them() -> None:
    assert text.words("Don't touch the merry-go-round, Zo\u00eb! It\u2019s 12 o'clock.") == [
        *("don't", "touch", "the", "merry-go-round", "zo\u00eb", "it's", "o'clock")
    ]


@pytest.mark.parametrize(
    ("whole", "parts"),
    [
        ("A dog ran. It fell!", ["A dog ran.", "It fell!"]),
        ('"Stop!" said Mr. Fox. "Why?"', ['"Stop!"', "said Mr. Fox.", '"Why?"']),
        ("The end\n\nNo. Not yet", ["The end", "No.", "Not yet"]),
        ("Pi is 3.14 today. ...", ["Pi is 3.14 today."]),
        ("  ", []),
    ],
)
def test_sentences_end_where_a_reader_sees_an_end(whole: str, parts: list[str]) -> None:
    assert text.sentences(whole) == parts


def test_the_opening_is_the_first_sentence_or_twelve_words_of_it() -> None:
    assert text.opening('"Hi!" said Tom. He ran.') == '"Hi!"'
    long = "Once upon a time, there was a little girl who had a red ball. She ran."
    assert text.opening(long) == "Once upon a time, there was a little girl who had a"
    assert text.opening("... 12") == "" and text.opening("Once upon") == "Once upon"


@pytest.mark.parametrize(
    ("whole", "ended", "finished"),
    [
        ("They ran home.", True, True),
        ('"We did it!"  \n', True, True),
        ("He said, \u201cGood night.\u201d", True, True),
        ("They ran home.", False, False),  # the limit of tokens came first
        ("They ran", True, False),
        ("They ran home,", True, False),
        ("", True, False),
    ],
)
def test_a_finished_story_ends_by_itself_and_with_a_sentence(whole: str, ended: bool, finished: bool) -> None:
    assert text.is_finished(story(whole, ended=ended)) is finished


@pytest.mark.parametrize(
    ("whole", "unclosed"),
    [
        ('"Hi," said Tom. "Yes?"', False),
        ('"Hi, said Tom.', True),
        ("It's the dogs' bone.", False),
        ("\u201cHi,\u201d said Tom. \u201cYes?\u201d", False),
        ("\u201cHi, said Tom. \u201cYes?\u201d", True),
        ("Hi,\u201d said Tom.", True),
        ("\u201cHi, said Tom.", True),
        ('"Hi, said Tom.\n\nThe end.', True),
        ('"Once I was small.\n\n"Now I am tall," said Tom.', False),
        ("\u201cOnce I was small.\n\n\u201cNow I am tall,\u201d said Tom.", False),
    ],
)
def test_quotes_that_are_not_closed(whole: str, unclosed: bool) -> None:
    assert text.has_unclosed_quote(story(whole)) is unclosed


def test_speech_that_the_limit_of_tokens_cut_is_not_judged() -> None:
    assert text.has_unclosed_quote(story('A dog ran.\n\n"Stop! Oh', ended=False)) is False
    assert text.has_unclosed_quote(story('"A dog ran.\n\nIt fell', ended=False)) is True
    assert text.has_unclosed_quote(story('A dog ran. "Stop! Oh', ended=False)) is None


def test_words_per_sentence() -> None:
    assert text.sentence_length(story("A dog ran home. It fell.")) == 3.0
    assert text.sentence_length(story("...")) is None


def test_reading_ease_by_its_formula() -> None:
    """Two sentences, 8 words, 37 letters and 2 dots: 4.71 * 39 / 8 + 0.5 * 8 / 2 - 21.43."""
    easy = story("Seven dogs went home. Three cats stayed there.")
    assert text.reading_grade(easy) == pytest.approx(3.53125)
    hard = story("Extraordinary circumstances necessitate considerable deliberation, notwithstanding inconvenience.")
    assert text.reading_grade(hard) > 20
    assert text.reading_grade(story("12 ...")) is None


def test_reading_ease_works_without_a_network() -> None:
    """textstat's other numbers fetch a dictionary of syllables at their first use; in a fresh process, none may."""
    program = """
import socket, sys
def forbid(*arguments, **named): raise SystemExit("the network was used")
import ssl  # derives a class from socket.socket
socket.socket = socket.create_connection = socket.getaddrinfo = forbid
from storyladder.measuring.story_text import Story, reading_grade
story = Story(prompt="", rest="Once there was a kangaroo. It jumped over the fence.", ended=True)
assert reading_grade(story)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=PROJECT,
        env={**ENVIRONMENT, "PYTHONPATH": str(PROJECT), "NLTK_DATA": "/nowhere"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_repeated_runs_of_four_words_are_counted_in_each_piece() -> None:
    once = "one two three four five six seven eight"
    twice = "one two three four one two three four"  # runs: 5, of which the last equals the first
    assert text.repeated_4grams(story(once), 8) == 0.0
    assert text.repeated_4grams(story(twice), 8) == pytest.approx(1 / 5)
    assert text.repeated_4grams(story(f"{once} {twice} rest"), 8) == pytest.approx(1 / 10)
    assert text.repeated_4grams(story("too short"), 8) is None


def test_compression_by_zlib() -> None:
    loop = " ".join(["round"] * 40)
    assert text.compression_ratio(story(loop), 40) == len(loop) / len(zlib.compress(loop.encode(), 9))
    assert text.compression_ratio(story(loop), 40) > 10
    assert text.compression_ratio(story("too short"), 40) is None


def test_words_that_the_corpus_lacks_after_the_prompt() -> None:
    vocabulary = frozenset({"the", "dog", "ran"})
    assert text.unknown_words(story("Xyz the dog ran blorfly.", prompt="Xyz"), vocabulary) == 0.25
    assert text.unknown_words(story("Xyz", prompt="Xyz"), vocabulary) is None


def test_things_are_introduced_before_they_are_the_thing() -> None:
    in_order = "She saw a big red dog. The dog had a bone. Tom took the bone."
    mixed = "Tom took the bone. She saw a big red dog. The dog had a bone."
    wrong = "The dog had the bone. A dog has a bone."
    assert [text.introduced_first(story(whole)) for whole in (in_order, mixed, wrong)] == [1.0, 0.5, 0.0]
    assert text.introduced_first(story("The sun rose. A bird sang.")) is None
