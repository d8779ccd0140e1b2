"""Twins, repeats and leaks: exact counts on stories written for it; and the script as a user runs it."""

from __future__ import annotations

import hashlib
import json
import random
import tracemalloc
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from preparing import ByteTokenizer, build, bytes_of, hasher, hashes_of, numbered, stories_in, text_of
from running import edited_config, run_script

from storyladder.corpus import prepare
from storyladder.corpus.prepare import CorpusText, sample_text
from storyladder.corpus.repeats import StoryHasher, StoryHashes, are_in, in_both, letters_of, stored_hashes
from storyladder.corpus.sample_stories import sample_stories
from storyladder.corpus.token_file import recorded_sidecar
from storyladder.corpus.tokenizer import gpt2_tokenizer
from storyladder.runtime.errors import DataError
from storyladder.settings import CorpusConfig

STORY = 'Tom said: "I can\'t see the caf\u00e9, Mum - not 1 bit!"\nThen he slept.'
TWINS = (
    STORY.upper(),
    STORY.replace('"', "\u201d").replace("'", "\u2019"),
    STORY.replace(" - ", "\u2014"),
    STORY.replace(":", "").replace("!", " ..."),
    STORY.replace("\n", " \n\n\t "),
    unicodedata.normalize("NFD", STORY),
    STORY.replace("fi", "\ufb01").replace("1", "\uff11"),
)


# --- twins ------------------------------------------------------------------------------------------------------------


def letters_slowly(story: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", story).casefold()))


@pytest.mark.parametrize("twin", TWINS)
def test_case_quotes_dashes_punctuation_white_space_and_the_encoding_of_accents_make_no_other_story(twin: str) -> None:
    (normal, exact), (twins, twins_exact) = hashes_of(STORY), hashes_of(twin)
    assert normal == twins and exact != twins_exact
    assert hashes_of("Another one.", "...", STORY, twin) == (twins, twins_exact)


@pytest.mark.parametrize("other", [STORY.replace("1", "2"), STORY.replace("\u00e9", "e"), STORY[:-2], STORY + " He"])
def test_another_letter_or_digit_makes_another_story(other: str) -> None:
    assert hashes_of(other)[0] != hashes_of(STORY)[0]


def test_stories_without_letters_have_only_exact_twins() -> None:
    assert letters_of("...") == letters_of("\u2014!") == b""
    assert len({hashes_of(story)[0] for story in ("...", "\u2014!", "\U0001f98a", "\U0001f430")}) == 4


def test_the_fast_ways_find_the_letters_that_the_slow_one_finds() -> None:
    signs, words = '.,"!\t\n-_&1 7', ["Fox", "Stra\u00dfe", "\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2", "\u0130x"]
    foreign = "\u00a0\u00a1\u00ab\u00b4\u00b7\u00bb\u00bf\u2026" + "".join(map(chr, range(0x2010, 0x2020)))
    draw = random.Random(0)
    stories = [
        *sample_stories("children", 50),
        "\u0915\u093f",
        "\U0001f98a fox",
        "\u00bd\u00b2",
        "".join(map(chr, range(0x3000))),
    ]
    stories += ["".join(draw.choices([*signs, *foreign, *words[:top]], k=30)) for top in (0, 1, 4) for _ in range(50)]
    stories += [chr(code) for code in range(0x3000)]
    for story in stories:
        assert letters_of(story).decode() == letters_slowly(story), ascii(story)


def test_a_hash_depends_on_the_letters_alone_not_on_tokens_neighbors_or_length() -> None:
    stories = [*sample_stories("tiny", 300), *TWINS, "x", "...", "Caf\u00e9", "word " * 40_000, "w", "ab", "ba"]
    for order in (stories, stories[::-1]):
        ours = hasher().of_stories(order, gpt2_tokenizer().encode_stories(order))[0]
        other = StoryHasher(ByteTokenizer()).of_stories(order, ByteTokenizer().encode_stories(order))[0]
        assert ours.tolist()[:-7] == other.tolist()[:-7]
        assert ours.tolist() == [hashes_of(story)[0] for story in order]
    letters = {letters_of(story) or story.encode() for story in stories}
    assert len({hashes_of(story)[0] for story in stories}) == len(letters)


def test_the_hashes_never_change_or_every_split_would() -> None:
    assert hashes_of("Once upon a time.") == (0x0D5C176118D51617, 0x4545FBCF50CCFAB9)


# --- one corpus -------------------------------------------------------------------------------------------------------


def test_repeats_on_each_side_are_counted_and_kept(tmp_path: Path) -> None:
    stories = ["One fox.", "Two.", "one fox", "Two.", "Three.", "ONE, FOX!"]
    train, val = build(tmp_path, text_of(stories, val=["Four.", "Four.", "five", "Five."]))
    assert train.cleaning == {"repeated": 3, "repeated exactly": 1}
    assert val.cleaning == {"repeated": 2, "repeated exactly": 1}
    assert stories_in(tmp_path / "train.bin") == stories


def test_training_stories_that_stand_in_validation_are_left_out(tmp_path: Path) -> None:
    stories = ["One.", " Four. ", "FOUR!", "Two.", "four", "Five"]
    train, val = build(tmp_path / "a", text_of(stories, val=["Four.", "Five."]))
    assert stories_in(tmp_path / "a" / "train.bin") == ["One.", "Two."]
    assert train.cleaning == {"stripped outer white space": 1, "dropped leak": 4, "exact leak": 1}
    assert (train.stories, val.stories, val.cleaning) == (2, 2, {})
    train, _ = build(tmp_path / "b", text_of(stories, val=["Four.", "Five."]), keep_leaks=True)
    assert train.stories == 6 and train.cleaning["kept leak"] == 4 and train.cleaning["repeated"] == 2


def test_a_limit_counts_leaks_too(tmp_path: Path) -> None:
    train, _ = build(tmp_path, text_of(["Val 1."] * 5 + numbered(50), val=["Val 1."]), limit_bytes=100)
    assert 70 <= train.text_bytes < 90 and train.cleaning["dropped leak"] == 5


def test_only_leaks_are_told_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 stand in validation and were left out; add other stories, or keep them"):
        build(tmp_path, text_of(["One.", "ONE"], val=["One."]))


def test_a_split_by_hash_has_twins_on_one_side(tmp_path: Path) -> None:
    stories = [f(story) for f in (str, str.upper, lambda s: f"\u201c{s}\u201d", str.lower) for story in numbered(400)]
    train, val = build(tmp_path, text_of(stories), corpus=CorpusConfig(val_percent=20))
    sides = [set(map(letters_of, stories_in(tmp_path / name))) for name in ("train.bin", "val.bin")]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 400 and len(sides[1]) > 50
    assert train.cleaning["repeated"] == 3 * len(sides[0]) and val.cleaning["repeated"] == 3 * len(sides[1])
    assert "dropped leak" not in train.cleaning


def test_twins_that_cleaning_makes_are_on_one_side_too(tmp_path: Path) -> None:
    """The split goes by the cleaned text: mojibake is letters before it is repaired."""
    stories = [f"{quote}Number {i}." for quote in ("\u201c", "\u00e2\u20ac\u0153") for i in range(300)]
    build(tmp_path, text_of(stories), corpus=CorpusConfig(val_percent=20))
    sides = [set(map(letters_of, stories_in(tmp_path / name))) for name in ("train.bin", "val.bin")]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 300


def test_text_without_repeats_gives_the_files_of_old(tmp_path: Path) -> None:
    """The SHA-256 of what was written before stories were compared; the sidecars are the same bytes, too."""
    corpus = CorpusConfig(sample_stories=300)
    build(tmp_path, sample_text("tiny", corpus), corpus=corpus)
    digests = {name: hashlib.sha256(content).hexdigest()[:16] for name, content in bytes_of(tmp_path).items()}
    assert digests.pop("train.bin.stories") and digests.pop("val.bin.stories")
    assert digests == {
        "train.bin": "0148587a4c714a66",
        "train.bin.json": "a55ac682e3d7c1ce",
        "val.bin": "c50810c23c3c2946",
        "val.bin.json": "a44b278f63819a0f",
    }


# --- stored hashes ----------------------------------------------------------------------------------------------------


def test_the_hashes_of_a_token_file_are_kept_next_to_it_and_bound_to_its_content(tmp_path: Path) -> None:
    build(tmp_path, text_of(["One.", "Two.", "two"], val=["Three."]))
    path = tmp_path / "train.bin"
    sidecar = recorded_sidecar(path)
    stored = stored_hashes(path, sidecar)
    assert sidecar and stored
    for column, hashes in enumerate(stored):
        assert hashes.tolist() == sorted(hashes_of(story)[column] for story in ("One.", "Two.", "two"))
    raw = (tmp_path / "train.bin.stories").read_bytes()
    for damaged in (raw[:-8], raw[:-1], b"", b"x" * 32 + raw[32:], raw + raw[-16:]):
        (tmp_path / "train.bin.stories").write_bytes(damaged)
        assert stored_hashes(path, sidecar) is None
    assert stored_hashes(path, None) is None and stored_hashes(tmp_path / "other.bin", sidecar) is None


def test_sorted_hashes_are_compared_as_sets_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    ours, theirs = (np.sort(draw.integers(0, 2**64, n, dtype=np.uint64, endpoint=False)) for n in (600_000, 1000))
    theirs[::3] = ours[:: len(ours) // 334][: len(theirs[::3])]
    theirs.sort()
    assert in_both(ours, theirs) == len({*ours.tolist()} & {*theirs.tolist()}) == 334
    assert in_both(theirs, ours) == 334 and in_both(ours, ours[:0]) == in_both(ours[:0], ours) == 0
    assert are_in(theirs, ours).sum() == 334 and not are_in(theirs, ours[:0]).any()


@pytest.mark.slow
def test_a_story_takes_16_bytes_of_memory_however_many_there_are() -> None:
    hashes, draw = StoryHashes(), np.random.default_rng(0)
    tracemalloc.start()
    for _ in range(100):
        hashes.add(*draw.integers(0, 2**64, (2, 4000), dtype=np.uint64, endpoint=False))
    assert hashes.repeats() == {}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400_000 * 20, f"{peak:,} bytes; 5.7 million stories must stay below 100 MB"


@pytest.mark.slow
def test_comparing_many_stories_takes_no_more_than_their_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "_BUNDLE_CHARS", 1 << 17)
    text = CorpusText(
        train=lambda: (f"Tale {i}" for i in range(150_000)), val=lambda: (f"v {i}" for i in range(99)), names=["x"]
    )
    tracemalloc.start()
    train, _ = build(tmp_path, text, tokenizer=ByteTokenizer(), workers=1, limit_bytes=10**9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert train.stories == 150_000
    assert peak < 10_000_000, f"{peak:,} bytes, of which the hashes are 2.4 million"


# --- several corpora, python prepare_data.py --------------------------------------------------------------------------

HELD = next(f"Child {i} slept" for i in range(10_000) if hashes_of(f"Child {i} slept")[0] < 2**64 // 100)
TEXTS = {
    "tiny/a.txt": ["Tiny one.", "Tiny two.", "Tiny val!", f"{HELD.upper()}.", "Simple val", "All have it."],
    "tiny/valid.txt": ["tiny val", "Tiny val two."],
    "children/a.txt": ["Child one.", f"{HELD}.", "Tiny val.", "Tiny val two.", "All have it.", "Child two."],
    "simple/a.txt": ["Simple one.", "Simple two.", f"{HELD}.", "All have it!"],
    "simple/test.txt": ["Simple val."],
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Settings whose folders lie under tmp_path, beside a folder `in` with stories that stand in several corpora."""
    for name, stories in TEXTS.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    return edited_config(tmp_path, f"PRESETS = (replace(LADDER, paths=Paths(root={str(tmp_path)!r})),)")


def told(config: Path, *flags: str) -> list[str]:
    """What is said of repeats and leaks."""
    done = run_script("prepare_data.py", "--config", config, "--from", config.parent / "in", *flags)
    assert done.returncode == 0 and done.stderr == "", done
    other = (".bin: ", " reads ", " validates ", "separated by")
    return [line for line in done.stdout.splitlines() if not any(words in line for words in other)]


def train_stories(config: Path) -> dict[str, list[str]]:
    return {suffix: stories_in(config.parent / "data" / f"train{suffix}.bin") for suffix in ("", "_ch", "_simp")}


CLEAN = {
    "": ["Tiny one.", "Tiny two.", "All have it."],
    "_ch": ["Child one.", "All have it.", "Child two."],
    "_simp": ["Simple one.", "Simple two.", "All have it!"],
}
SHARED = [
    "tiny: 1 story also in training text of children (1 exactly; kept)",
    "tiny: 1 story also in training text of simple (0 exactly; kept)",
    "children: 1 story also in training text of simple (0 exactly; kept)",
]
LEFT_OUT = "left out of training: {} in a validation text ({} exactly; --keep-leaks keeps them)"


def test_no_corpus_trains_on_the_validation_text_of_another(config: Path) -> None:
    assert told(config) == [
        f"children: 3 stories for training, 1 for validation; {LEFT_OUT.format(2, 1)}",
        f"tiny: 3 stories for training, 2 for validation; {LEFT_OUT.format(3, 0)}",
        f"simple: 3 stories for training, 1 for validation; {LEFT_OUT.format(1, 1)}",
        *SHARED,
    ]
    assert train_stories(config) == CLEAN
    before = bytes_of(config.parent / "data")
    told(config)
    assert bytes_of(config.parent / "data") == before


@pytest.mark.slow
def test_one_corpus_after_another_comes_to_the_same_with_the_command_that_is_told(config: Path) -> None:
    data = config.parent / "data"
    tiny = "tiny: {} stories for training, 2 for validation; " + LEFT_OUT
    assert told(config, "--stage", "tiny") == [tiny.format(5, 1, 0)]
    command = f"python prepare_data.py --config {config} --stage tiny --from {config.parent / 'in'}"
    assert told(config, "--stage", "children") == [
        f"children: 3 stories for training, 1 for validation; {LEFT_OUT.format(2, 1)}",
        f"tiny: 1 story of {data / 'train.bin'} also in the validation text of children",
        SHARED[0],
        f"to leave them out of the training text of tiny: {command}",
    ]
    told(config, "--stage", "simple")
    assert told(config, "--stage", "tiny") == [tiny.format(3, 3, 0), *SHARED]
    assert train_stories(config) == CLEAN
    (data / "val_ch.bin.stories").unlink()
    assert told(config, "--stage", "tiny")[:2] == [
        tiny.format(4, 2, 0),
        f"{data / 'val_ch.bin'} was made without hashes of its stories; prepare children again to compare them with "
        "other stories",
    ]


def test_leaks_are_kept_for_who_asks_and_the_sidecars_say_so(config: Path) -> None:
    lines = told(config, "--keep-leaks")
    assert lines[1] == (
        "tiny: 6 stories for training, 2 for validation; kept in training: 3 in a validation text (0 exactly)"
    )
    assert not any("validation text of" in line for line in lines)
    sidecar = json.loads((config.parent / "data" / "train_ch.bin.json").read_text(encoding="utf-8"))
    assert sidecar["cleaning"] == {"kept leak": 2, "exact leak": 1} and sidecar["stories"] == 5
