"""The tokenizer: GPT-2's ids from the bundled ranks, and never a word to the network."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from running import PROJECT

from storyladder.corpus import tokenizer as tokenizer_module
from storyladder.corpus.sample_stories import sample_stories
from storyladder.corpus.tokenizer import EOT, EOT_TEXT, Tokenizer, gpt2_tokenizer
from storyladder.runtime.errors import DataError

# As OpenAI's GPT-2 encoder gives them.
KNOWN = {
    "Hello world": [15496, 995],
    "hello world": [31373, 995],
    "Once upon a time": [7454, 2402, 257, 640],
    "Once upon a time, there was a little girl named Lily.": [
        *(7454, 2402, 257, 640, 11, 612, 373, 257, 1310, 2576, 3706, 20037, 13),
    ],
    " the": [262],
    "I'm": [40, 1101],
    "  x": [220, 2124],
    "\n\n": [628],
    "na\u00efve": [2616, 38776],
    "\U0001f642": [8582, 25081],
    "": [],
}


@pytest.mark.parametrize("text", KNOWN)
def test_known_texts_get_the_ids_of_gpt_2(text: str) -> None:
    assert gpt2_tokenizer().encode(text) == KNOWN[text]
    assert gpt2_tokenizer().decode(KNOWN[text]) == text


def test_there_are_50257_tokens_and_the_last_one_is_the_end_of_a_story() -> None:
    tokenizer = gpt2_tokenizer()
    assert tokenizer.vocab_size == 50257 and EOT == 50256 and EOT_TEXT == "<|endoftext|>"
    assert tokenizer.decode([EOT]) == "<|endoftext|>"
    assert tokenizer.fingerprint == "gpt2:306cd27f03c1a714"


def test_a_marker_inside_a_story_stays_ordinary_text() -> None:
    tokenizer = gpt2_tokenizer()
    ordinary = [27, 91, 437, 1659, 5239, 91, 29]
    assert tokenizer.encode("<|endoftext|>") == ordinary
    for encode in (tokenizer.encode_stories, tokenizer.encode_stories_plainly):
        assert encode(["<|endoftext|>", "x"]).tolist() == [*ordinary, EOT, 87, EOT]
    halves = ["<|endof", "text|>"]
    assert tokenizer.encode_stories(halves).tolist().count(EOT) == 2


def pieces_for_fuzz() -> list[str]:
    words = [
        "the",
        " dragon",
        "'s",
        "n't",
        "THE",
        "don't",
        "123",
        " 4567",
        "\u00e9",
        "e\u0301",
        "\u4f60\u597d",
        "\u0416",
    ]
    words += [
        "\U0001f642",
        "\U0001f469\u200d\U0001f680",
        "\u200b",
        "\u00a0",
        "\u3000",
        "\u2028",
        "\ufffd",
        "\x85",
        "\x1c",
    ]
    words += [" ", "  ", "   ", "\n", "\n\n", "\t", " \n ", "\r\n", "!?!", "...", "\u201c", "--", "_", "<|", "|>"]
    return [*words, EOT_TEXT, EOT_TEXT[:-1], EOT_TEXT[1:], "<", ">", "endoftext"]


def test_stories_together_get_the_ids_that_each_gets_alone_followed_by_eot() -> None:
    tokenizer, draw, pieces = gpt2_tokenizer(), random.Random(0), pieces_for_fuzz()
    both_ways = 0
    for _ in range(300):
        stories = ["".join(draw.choices(pieces, k=draw.randrange(12))) for _ in range(draw.randrange(6))]
        together = tokenizer.encode_stories(stories)
        assert together.dtype == np.uint16
        assert together.tolist() == [token for story in stories for token in [*tokenizer.encode(story), EOT]], stories
        assert [tokenizer.decode(tokenizer.encode(story)) for story in stories] == stories
        both_ways += any(EOT_TEXT in story for story in stories)
    assert 30 < both_ways < 270, "with and without the marker"
    assert tokenizer.encode_stories([]).tolist() == []
    assert tokenizer.encode_stories(["", ""]).tolist() == [EOT, EOT]


def test_white_space_at_the_ends_of_stories_does_not_meet_that_of_the_next() -> None:
    tokenizer = gpt2_tokenizer()
    stories = ["a ", " b", "\n", "\n\nc\n", " "]
    assert tokenizer.encode_stories(stories).tolist() == [t for s in stories for t in (*tokenizer.encode(s), EOT)]


def test_a_million_blanks_in_a_row_come_back_as_they_were() -> None:
    tokenizer = gpt2_tokenizer()
    story = "a" + 1_200_000 * " " + "b"
    ids = tokenizer.encode_stories([story, "x"])
    assert tokenizer.decode(ids.tolist()) == story + EOT_TEXT + "x" + EOT_TEXT
    assert tokenizer.encode(story) == ids.tolist()[:-3]


def test_long_stories_without_long_blanks_are_not_cut() -> None:
    tokenizer = gpt2_tokenizer()
    story = "\n\n".join(sample_stories("tiny", 200))
    assert len(story) > 120_000
    assert tokenizer.encode(story) == tokenizer._encoding.encode_ordinary(story)


def test_half_a_character_decodes_to_a_replacement() -> None:
    assert gpt2_tokenizer().decode([8582]) == "\ufffd"


def test_the_bytes_of_all_tokens_add_up_to_the_text_and_eot_has_none() -> None:
    tokenizer = gpt2_tokenizer()
    assert tokenizer.token_bytes_V.shape == (50257,)
    assert tokenizer.token_bytes_V[[EOT, 262, 220, 8582]].tolist() == [0, 4, 1, 2]
    assert (tokenizer.token_bytes_V[:EOT] > 0).all() and tokenizer.token_bytes_V.sum() == 320_814
    story = "Once upon a na\u00efve \U0001f642 time"
    assert tokenizer.token_bytes_V[tokenizer.encode_stories([story])].sum() == len(story.encode())
    assert tokenizer.decode_bytes(8582) == "\U0001f642".encode()[:2] and tokenizer.decode_bytes(EOT) == b""


def refused_with(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(tokenizer_module, "RANKS_FILE", path)
    with pytest.raises(DataError) as error:
        gpt2_tokenizer.__wrapped__()
    return str(error.value)


def test_a_damaged_or_missing_list_of_ranks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r50k_base.tiktoken"
    raw = bytearray(tokenizer_module.RANKS_FILE.read_bytes())
    assert refused_with(path, monkeypatch).startswith(f"cannot read {path}: No such file")
    raw[1000] ^= 1
    path.write_bytes(raw)
    assert refused_with(path, monkeypatch) == (
        f"{path} is not GPT-2's token list (SHA-256 differs); restore it with git checkout"
    )


def test_a_list_of_ranks_that_came_by_way_of_windows_is_read_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r50k_base.tiktoken"
    path.write_bytes(tokenizer_module.RANKS_FILE.read_bytes().replace(b"\n", b"\r\n"))
    monkeypatch.setattr(tokenizer_module, "RANKS_FILE", path)
    assert gpt2_tokenizer.__wrapped__().encode("Once upon a time") == gpt2_tokenizer().encode("Once upon a time")


def test_nothing_is_downloaded_and_nothing_is_cached(tmp_path: Path) -> None:
    program = """
import sys
def forbid(event, arguments):
    wants_to_write = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if event.startswith(("socket.", "urllib.", "http.")) or wants_to_write or event in ("os.mkdir", "os.rename"):
        raise SystemExit(f"{event} {arguments}")
sys.addaudithook(forbid)
from storyladder.corpus.tokenizer import gpt2_tokenizer
print(gpt2_tokenizer().encode_stories(["Hello world"]).tolist())
"""
    done = subprocess.run(
        [sys.executable, "-B", "-c", program],
        cwd=PROJECT,
        env={"TIKTOKEN_CACHE_DIR": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[15496, 995, 50256]\n", "")
    assert list(tmp_path.iterdir()) == []


def test_the_tokenizer_is_built_once() -> None:
    assert gpt2_tokenizer() is gpt2_tokenizer() and isinstance(gpt2_tokenizer(), Tokenizer)
