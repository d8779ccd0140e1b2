"""Pieces of stories: cut only where GPT-2's pattern cuts anyway, met before or not, on one thread or several."""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from storyladder.corpus import pieces
from storyladder.corpus.pieces import END, PieceIds, cut
from storyladder.corpus.sample_stories import sample_stories
from storyladder.corpus.tokenizer import EOT, EOT_TEXT, Tokenizer, gpt2_tokenizer

# One of each kind that a pattern or a table of bytes may take differently. The copyright sign ends in the byte of a
# line separator, a capital A with grave in that of an en quad, the Ogham mark is white space, \x1c only for Python.
KINDS = (" ", "\n", "\t", "a", "s", "L", "1", ".", "'", "\x00", "\x1c", "\u00e9", "\u00a9", "\u00c0", "\u2019")
KINDS += ("\u00a0", "\u2003", "\u3000", "\x85", "\u1680", "\u4f60", "\u0301", "\u00b2", "\U0001f642")


def alone(stories: Sequence[str]) -> list[int]:
    """What tiktoken gives for each story alone, with EOT after it."""
    encoding = gpt2_tokenizer()._encoding
    return [token for story in stories for token in (*encoding.encode_ordinary(story), EOT)]


def fresh() -> PieceIds:
    """One that has seen nothing."""
    return PieceIds(gpt2_tokenizer().encode_stories_plainly, EOT)


def assert_exact(stories: list[str], ids: PieceIds | None = None) -> None:
    together = (ids or fresh()).of_stories(stories)
    assert together.dtype == np.uint16
    if together.tolist() != alone(stories):
        wrong = [story for story in stories if fresh().of_stories([story]).tolist() != alone([story])]
        pytest.fail(f"{len(wrong)} stories differ, such as {wrong[:5]}")


def cut_texts(story: str) -> list[str]:
    found = [piece.decode() for piece in cut([story]).to_pylist()[:-1]]
    assert "".join(found) == story
    return found


# --- where the cuts are -----------------------------------------------------------------------------------------------


def test_words_signs_and_white_space_are_cut_apart_where_nothing_else_can_matter() -> None:
    assert cut_texts("Lily's cat said, \"I don't know!\"\n\nThe 2nd end. ") == [
        *("Lily", "'s", " cat", " said", ",", ' "', "I", " don", "'t", " know", '!"', "\n\nThe", " 2nd", " end", "."),
        " ",
    ]
    assert cut_texts("  x") == ["  x"] and cut_texts("a \n  x") == ["a", " \n  x"]
    assert cut_texts("\u00e9 x") == ["\u00e9 x"], "ends in the byte of a line separator"
    assert cut_texts("\u00ea x") == ["\u00ea", " x"]
    assert cut_texts("don\u2019t \u201cyes\u201d no") == ["don\u2019t", " \u201cyes\u201d", " no"]
    assert cut_texts("a.\x1cb") == ["a", ".\x1c", "b"], "white space to Python alone"
    assert cut(["a", "", "b"]).to_pylist() == [b"a", END, END, b"b", END]


def test_white_space_of_any_alphabet_is_not_cut_apart() -> None:
    spaces = [chr(code) for code in range(sys.maxunicode) if chr(code).isspace() and not 0x1C <= code <= 0x1F]
    assert len(spaces) == 25
    for space in spaces:
        assert cut_texts(f"x{space}  x")[-1].endswith(f"{space}  x"), repr(space)


def test_every_short_text_of_every_kind_of_character_gets_its_ids() -> None:
    for length in (1, 2, 3):
        assert_exact(["".join(text) for text in itertools.product(KINDS, repeat=length)])


def test_every_text_of_five_characters_around_white_space_and_apostrophes_gets_its_ids() -> None:
    assert_exact(["".join(text) for text in itertools.product((" ", "\n", "s", "'", ".", "1", "\u00a0"), repeat=5)])


def test_every_ascii_character_beside_every_other_gets_its_ids() -> None:
    ascii_characters = [chr(code) for code in range(128)]
    assert_exact([f"x{left}{right}e 's" for left in ascii_characters for right in ascii_characters])


def test_every_character_up_to_the_kana_beside_spaces_gets_its_ids() -> None:
    characters = [chr(code) for code in (*range(0x3100), 0xFEFF, 0xFFFD, 0x1D7D8, 0x1F600)]
    assert_exact([f"a{character} b{character}  c" for character in characters])


@pytest.mark.parametrize("word", ["s", "t", "re", "ve", "m", "ll", "d", "S", "LL", "r", "l", "v", "sd", "'s"])
def test_contractions_stay_whole_wherever_they_stand(word: str) -> None:
    before = ("", "x", " ", "  ", "\n", "1", "'", '"', ".", "\u00e9", "\u2019", "n", " x")
    after = ("", "x", " ", "'", ".", "1", "\u00e9", "'re", "\n\n")
    assert_exact([f"{left}'{word}{right}" for left in before for right in after])


def random_text(draw: random.Random) -> Iterator[str]:
    words = ("the", "Once", " upon", " a", " time", "'s", "n't", "123", "e\u0301", EOT_TEXT, "<|", "|>", "endoftext")
    while True:
        kind = draw.randrange(5)
        if kind == 0:
            yield draw.choice(words)
        elif kind == 1:
            yield draw.choice(KINDS) * draw.choice((1, 1, 2, 3, 4, 8, 17, 40))
        elif kind == 2:
            yield "".join(draw.choices(" \t\n\r\v\f", k=draw.randrange(1, 5)))
        elif kind == 3:
            yield chr(draw.randrange(128))
        else:
            code = draw.randrange(0x110000)
            yield "\ufffd" if 0xD800 <= code < 0xE000 else chr(code)


def test_random_stories_get_their_ids_also_when_their_pieces_are_remembered() -> None:
    draw, ids = random.Random(0), fresh()
    for _ in range(40):
        stories = ["".join(itertools.islice(random_text(draw), draw.randrange(25))) for _ in range(draw.randrange(60))]
        assert_exact(stories, ids)
        assert_exact(stories[::-1], ids)


def test_the_sample_stories_get_their_ids() -> None:
    ids = fresh()
    for stage in ("tiny", "children", "simple"):
        assert_exact(list(sample_stories(stage, 150)), ids)


def test_the_tokenizer_encodes_by_pieces_and_plainly_the_same() -> None:
    stories = [*sample_stories("children", 40), "", " ", "\u00a0\n", EOT_TEXT, "a" * 100]
    tokenizer = Tokenizer(gpt2_tokenizer()._encoding)
    assert tokenizer.encode_stories(stories).tolist() == tokenizer.encode_stories_plainly(stories).tolist()
    assert tokenizer._piece_ids is not None and len(tokenizer._piece_ids._remembered[0]) > 200


def test_without_pyarrow_the_tokenizer_encodes_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "storyladder.corpus.pieces", None)
    tokenizer = Tokenizer(gpt2_tokenizer()._encoding)
    assert tokenizer.encode_stories(["One.", "Two."]).tolist() == alone(["One.", "Two."])
    assert tokenizer._piece_ids is None


# --- what is remembered -----------------------------------------------------------------------------------------------


class Counting:
    """Encodes as tiktoken does and keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.asked.extend(texts)
        return gpt2_tokenizer().encode_stories_plainly(texts)


def test_a_piece_is_encoded_once() -> None:
    count = Counting()
    ids = PieceIds(count, EOT)
    assert_exact(["the cat, the cat", "the dog"], ids)
    assert count.asked == ["the", " cat", ",", " the", " dog"]
    assert_exact(["the dog, the bird"], ids)
    assert count.asked[5:] == [" bird"]
    assert_exact(["the cat", "the dog, the bird"], ids)
    assert count.asked[6:] == []


def test_memory_is_bounded_and_the_ids_stay_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_MOST_REMEMBERED", 30)
    ids = fresh()
    sizes = []
    for start in range(0, 400, 8):
        assert_exact([f"{word} {word}" for word in range(start, start + 8)], ids)
        sizes.append(len(ids._remembered[0]))
        assert len(ids._remembered[0]) == len(ids._remembered[1])
    assert max(sizes) <= 30 and sizes.count(17) > 10, "the mark, and 8 numbers with and without a space"


def test_long_pieces_are_not_remembered() -> None:
    count = Counting()
    ids = PieceIds(count, EOT)
    for _ in range(2):
        assert_exact(["a" * 32 + " " + "b" * 32], ids)
    assert count.asked == ["a" * 32, " " + "b" * 32, " " + "b" * 32]


def test_threads_that_meet_new_pieces_at_once_all_get_their_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_MOST_REMEMBERED", 400)
    ids, stories = fresh(), list(sample_stories("children", 240))
    bundles = [stories[start : start + 6] for start in range(0, 240, 6)] * 2
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ids.of_stories, bundles))
    assert [bundle.tolist() for bundle in found] == [alone(bundle) for bundle in bundles]
