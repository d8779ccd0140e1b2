"""What becomes of a prompt: blanks at its end, words that training never saw, a typed marker."""

from __future__ import annotations

import pytest

from storyladder.corpus.tokenizer import gpt2_tokenizer
from storyladder.telling.prompt import checked_prompt, notes_on, unseen_words

TOKENIZER = gpt2_tokenizer()
SEEN = set(TOKENIZER.encode("Once upon a time, there was a girl named Lily. The cat\n\nran"))
SEEN_V = [token in SEEN for token in range(TOKENIZER.vocab_size)]


@pytest.mark.parametrize("blanks", [" ", "   ", "\t", " \t ", "\u00a0", "\u3000"])
def test_blanks_at_the_end_are_left_out_and_others_are_not(blanks: str) -> None:
    assert checked_prompt(f"a girl  named{blanks}") == "a girl  named"
    assert checked_prompt(blanks) == ""
    assert checked_prompt(f" Once upon\n\n{blanks}") == " Once upon\n\n"


def test_words_with_tokens_that_training_never_saw_are_named_once_each() -> None:
    text = "Once upon a zygomorphic time, zygomorphic 漢字 there"
    assert unseen_words(text, TOKENIZER, SEEN_V) == ["zygomorphic", "漢字"]
    assert unseen_words("Once upon a time, there was a cat", TOKENIZER, SEEN_V) == []
    assert unseen_words("Once   upon", TOKENIZER, SEEN_V) == ["   "]
    assert unseen_words("", TOKENIZER, SEEN_V) == []


def test_a_prompt_is_commented_in_a_line_and_only_where_there_is_something_to_say() -> None:
    assert notes_on("Once upon a time", TOKENIZER, SEEN_V) == []
    assert notes_on("zygomorphic", TOKENIZER, None) == [], "a checkpoint that does not say what it saw"
    (note,) = notes_on("zygomorphic cat", TOKENIZER, SEEN_V)
    assert note == "note: training never saw 'zygomorphic'; the story may ignore it"
    (note,) = notes_on(" ".join(f"zyg{n}" for n in range(9)) + " " + "x" * 10_000, TOKENIZER, SEEN_V)
    assert "'zyg4', ...;" in note and len(note) < 200


def test_a_marker_in_a_prompt_is_explained() -> None:
    assert notes_on("Once <|endoftext|>", TOKENIZER, [True] * TOKENIZER.vocab_size) == [
        "note: <|endoftext|> in a prompt is ordinary text and does not end the story"
    ]


def test_a_checkpoint_of_fewer_tokens_saw_none_of_the_others() -> None:
    assert unseen_words("Once upon", TOKENIZER, [True]) == ["Once", "upon"]


def test_a_long_prompt_is_looked_through_at_once() -> None:
    assert len(unseen_words("zyg" * 30_000, TOKENIZER, SEEN_V)) == 1
