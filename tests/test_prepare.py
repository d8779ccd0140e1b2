"""From text to token files: the same bytes on every machine, nothing half done; and the script as a user runs it."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preparing import ByteTokenizer, build, bytes_of, hashes_of, numbered, stories_in, text_of
from running import ENVIRONMENT, command, edited_config, refusal, run_script

from storyladder.corpus import prepare
from storyladder.corpus.corpora import corpus_named
from storyladder.corpus.folders import corpus_files
from storyladder.corpus.prepare import CorpusText, sample_text, text_of_files
from storyladder.corpus.sample_stories import sample_stories
from storyladder.corpus.token_file import open_token_file
from storyladder.corpus.tokenizer import gpt2_tokenizer
from storyladder.runtime.errors import DataError
from storyladder.runtime.lock import locked
from storyladder.settings import CleaningConfig, CorpusConfig

SIX = ("train.bin", "val.bin", "train_ch.bin", "val_ch.bin", "train_simp.bin", "val_simp.bin")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def touch(folder: Path, *paths: str) -> None:
    for name in paths:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x", encoding="utf-8")


# --- splitting --------------------------------------------------------------------------------------------------------


def test_stories_go_to_their_files_in_order_each_followed_by_eot(tmp_path: Path) -> None:
    train, val = build(tmp_path, text_of(["One.", "Two \u00e9.", "Three."], val=["Four.", "Five."]))
    assert stories_in(tmp_path / "train.bin") == ["One.", "Two \u00e9.", "Three."]
    assert stories_in(tmp_path / "val.bin") == ["Four.", "Five."]
    assert (train.stories, train.text_bytes) == (3, 4 + 7 + 6) and (val.stories, val.text_bytes) == (2, 5 + 5)
    assert train.sources == val.sources == ["given"]
    assert train.tokens == len(gpt2_tokenizer().encode_stories(["One.", "Two \u00e9.", "Three."]))


def test_what_cleaning_did_is_counted_on_each_side(tmp_path: Path) -> None:
    corpus = CorpusConfig(cleaning=CleaningConfig(lowercase=True, min_chars=3))
    train, val = build(tmp_path, text_of([" One. ", "x", "", "two."], val=["Four."]), corpus=corpus)
    assert stories_in(tmp_path / "train.bin") == ["one.", "two."] and stories_in(tmp_path / "val.bin") == ["four."]
    assert train.cleaning == {
        "stripped outer white space": 1,
        "lower-cased": 1,
        "dropped too short": 1,
        "dropped empty": 1,
    }
    assert val.cleaning == {"lower-cased": 1}


def test_about_the_asked_share_is_held_back_and_nothing_is_lost(tmp_path: Path) -> None:
    train, val = build(tmp_path, text_of(numbered(5000)), corpus=CorpusConfig(val_percent=10))
    assert train.stories + val.stories == 5000
    assert 440 < val.stories < 560, "500 +- 2.8 standard deviations; the same every time"
    both = stories_in(tmp_path / "train.bin"), stories_in(tmp_path / "val.bin")
    assert sorted(both[0] + both[1]) == sorted(numbered(5000))


def test_the_split_stays_when_stories_are_added_or_moved(tmp_path: Path) -> None:
    corpus = CorpusConfig(val_percent=10)
    build(tmp_path / "few", text_of(numbered(1000)), corpus=corpus)
    build(tmp_path / "many", text_of(numbered(2000)[::-1]), corpus=corpus)
    few, many = (set(stories_in(tmp_path / folder / "val.bin")) for folder in ("few", "many"))
    assert few and few == many & set(numbered(1000))


def test_a_story_told_twice_is_on_one_side_only(tmp_path: Path) -> None:
    repeated = [story + space for space in ("", " ", "\n") for story in numbered(500)]
    build(tmp_path, text_of(repeated), corpus=CorpusConfig(val_percent=20))
    train, val = (stories_in(tmp_path / name) for name in ("train.bin", "val.bin"))
    assert len(train) + len(val) == 1500 and val
    assert set(train) & set(val) == set()


def test_no_story_at_all_is_told_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no stories for train\.bin in given; add more text, or raise val_percent"):
        build(tmp_path, text_of([]))
    with pytest.raises(
        DataError, match=r"cleaning dropped all of them \(\{'dropped too short': 2\}\); relax CleaningConfig"
    ):
        build(tmp_path, text_of(["a", "b"]), corpus=CorpusConfig(cleaning=CleaningConfig(min_chars=5)))
    with pytest.raises(DataError, match=r"no stories for val\.bin in given; add more text, or raise val_percent"):
        build(tmp_path, text_of(["Only one."]))
    assert names(tmp_path) == set()


# --- the same bytes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles of some 20 stories, so that a few hundred stories are many bundles."""
    monkeypatch.setattr(prepare, "_BUNDLE_CHARS", 10_000)


@pytest.mark.usefixtures("small_bundles")
def test_the_number_of_workers_does_not_change_a_byte(tmp_path: Path) -> None:
    stories, corpus = list(sample_stories("tiny", 600)), CorpusConfig(val_percent=40)
    for workers in (1, 3, 8, None):
        build(tmp_path / str(workers), text_of(stories), corpus=corpus, workers=workers)
    first = bytes_of(tmp_path / "1")
    assert set(first) == {f"{side}.bin{kind}" for side in ("train", "val") for kind in ("", ".json", ".stories")}
    for workers in (3, 8, None):
        assert bytes_of(tmp_path / str(workers)) == first
    told = {story: place for place, story in enumerate(stories)}
    places = [told[story] for story in stories_in(tmp_path / "1" / "train.bin")]
    assert len(places) > 300 and places == sorted(places)


def test_a_limit_ends_reading_and_leaves_a_tenth_for_validation(tmp_path: Path) -> None:
    read = 0

    def counted() -> Iterator[str]:
        nonlocal read
        for i in range(10_000):
            read += 1
            yield f"{i:09d}\u00e9"  # 11 bytes, 10 characters

    stories = CorpusText(train=counted, val=lambda: (f"v{i:09d}" for i in range(10_000)), names=["x"])
    train, val = build(tmp_path, stories, limit_bytes=1100)
    assert (train.stories, train.text_bytes) == (100, 1100)
    assert read == 101, "no more than is needed"
    assert val.text_bytes == 110


def test_a_limit_with_a_split_counts_training_text(tmp_path: Path) -> None:
    train, val = build(
        tmp_path, text_of(["x" + s for s in numbered(5000)]), corpus=CorpusConfig(val_percent=20), limit_bytes=9000
    )
    assert 8600 < train.text_bytes < 9400, "the hash decides after the text was read"
    assert 1000 < val.text_bytes < 3500


def test_memory_does_not_grow_with_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "_BUNDLE_CHARS", 1 << 20)
    path = tmp_path / "stories.txt"
    with path.open("w", encoding="utf-8") as file:
        for i in range(6000):
            file.write(f"{i} " + 500 * "Once upon " + ".\n<|endoftext|>\n")
    assert path.stat().st_size > 30_000_000
    tracemalloc.start()
    train, _ = build(tmp_path, text_of_files([path]), tokenizer=ByteTokenizer(), workers=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert train.text_bytes > 29_000_000
    assert peak < 20_000_000, f"{peak:,} bytes"


@pytest.mark.usefixtures("small_bundles")
def test_a_request_to_leave_is_met_on_the_way_and_leaves_no_file(tmp_path: Path) -> None:
    read = 0

    def counted() -> Iterator[str]:
        nonlocal read
        for read, story in enumerate(sample_stories("tiny", 600)):  # noqa: B007
            yield story

    def leave() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, CorpusText(train=counted, val=None, names=["x"]), workers=1, check_stop=leave)
    assert 0 < read < 300
    assert names(tmp_path) == set()


def test_a_fault_in_the_middle_of_the_text_leaves_no_file_and_the_old_pair_whole(tmp_path: Path) -> None:
    build(tmp_path, text_of(["One."], val=["Two."]))
    before = bytes_of(tmp_path)
    path = tmp_path / "stories.txt"
    path.write_bytes(b"Good.\n<|endoftext|>\n" * 100 + b"Bad \xff.\n<|endoftext|>\n")
    with pytest.raises(DataError, match="0xff"):
        build(tmp_path, text_of_files([path]), corpus=CorpusConfig(val_percent=50))
    assert bytes_of(tmp_path) == before and names(tmp_path) == {*before, "stories.txt"}


# --- which files ------------------------------------------------------------------------------------------------------


def found(folder: Path, corpus: str, *, alone: bool = False) -> list[str]:
    files = corpus_files(folder, corpus_named(corpus), alone=alone).files
    return [str(path.relative_to(folder)) for path in files]


@pytest.mark.parametrize(
    ("stage", "subfolder"),
    [("tiny", "tiny"), ("tiny", "tinystories"), ("children", "children_stories"), ("simple", "simplestories")],
)
def test_files_in_a_subfolder_of_the_stages_name_come_first(tmp_path: Path, stage: str, subfolder: str) -> None:
    touch(tmp_path, f"{subfolder}/b.txt", f"{subfolder}/a.jsonl", f"{subfolder}/notes.md", f"{subfolder}/.hidden.txt")
    touch(tmp_path, "TinyStories-train.txt", "Children-Stories-0-Final.json", "SimpleStories.txt")
    assert found(tmp_path, stage) == [f"{subfolder}/a.jsonl", f"{subfolder}/b.txt"]


def test_files_are_known_by_their_original_names(tmp_path: Path) -> None:
    touch(tmp_path, "TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt", "Children-Stories-3-Final.json")
    touch(tmp_path, "train-00000-of-00007.parquet", "test-00000-of-00001.parquet", "other.txt")
    (tmp_path / "tiny").mkdir()  # empty: not meant
    assert found(tmp_path, "tiny") == ["TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt"]
    assert found(tmp_path, "children") == ["Children-Stories-3-Final.json"]
    assert found(tmp_path, "simple") == ["test-00000-of-00001.parquet", "train-00000-of-00007.parquet"]


def test_files_of_any_name_belong_to_the_one_stage_that_was_asked_for(tmp_path: Path) -> None:
    touch(tmp_path, "mine.txt", "yours.json")
    assert found(tmp_path, "simple", alone=True) == ["mine.txt", "yours.json"]
    assert found(tmp_path, "simple") == []
    touch(tmp_path, "SimpleStories.txt")
    assert found(tmp_path, "simple", alone=True) == ["SimpleStories.txt"]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"folder .*nowhere does not exist; pass the folder .* with --from DIR"):
        corpus_files(tmp_path / "nowhere", corpus_named("tiny"), alone=False)


def sides(folder: Path, **contents: str) -> tuple[list[str], list[str] | None, list[str]]:
    for name, text in contents.items():
        (folder / name).write_text(text, encoding="utf-8")
    text = text_of_files([folder / name for name in contents])
    return list(text.train()), list(text.val()) if text.val else None, text.names


@pytest.mark.parametrize(
    "name", ["a-valid.txt", "val.txt", "x_VAL.txt", "a.dev.txt", "test-0-of-1.txt", "validation.txt"]
)
def test_names_say_what_is_for_validation(tmp_path: Path, name: str) -> None:
    assert sides(tmp_path, **{"a.txt": "One.", name: "Two."}) == (["One."], ["Two."], ["a.txt", name])


@pytest.mark.parametrize("name", ["valentine.txt", "a-testament.txt", "festival.txt", "latest.txt", "devil.txt"])
def test_words_that_only_contain_val_test_or_dev_are_for_training(tmp_path: Path, name: str) -> None:
    assert sides(tmp_path, **{"a.txt": "One.", name: "Two."}) == (["One.", "Two."], None, ["a.txt", name])


def test_validation_text_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^a-val\.txt: only validation files, by their names; add a training file"):
        sides(tmp_path, **{"a-val.txt": "Two."})


def test_the_beginning_of_a_file_is_not_read_beside_the_file(tmp_path: Path) -> None:
    parts = {"a-train.first-99-bytes.txt": "99", "a-train.first-100-bytes.txt": "100", "a-valid.txt": "V"}
    assert sides(tmp_path, **parts) == (["100"], ["V"], ["a-train.first-100-bytes.txt", "a-valid.txt"])
    whole = {**parts, "a-train.txt": "whole", "b.first-5-bytes.txt": "other"}
    assert sides(tmp_path, **whole) == (
        ["whole", "other"],
        ["V"],
        ["a-train.txt", "a-valid.txt", "b.first-5-bytes.txt"],
    )


def test_the_bundled_samples_of_a_stage_have_validation_stories_of_their_own() -> None:
    text = sample_text("tiny", CorpusConfig(sample_stories=300, val_percent=1))
    assert text.val is not None
    train, val = list(text.train()), list(text.val())
    assert (len(train), len(val)) == (300, 20) and train[:20] != val
    text = sample_text("tiny", CorpusConfig(sample_stories=3000, val_percent=2))
    assert text.val is not None and len(list(text.val())) == 60


# --- python prepare_data.py -------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """config.py with all folders under tmp_path and few sample stories."""
    return edited_config(
        tmp_path,
        f"HERE = Paths(root={str(tmp_path)!r})",
        "FEW = CorpusConfig(sample_stories=300)",
        "ENDLESS = CorpusConfig(sample_stories=10_000_000)",
        "DEFAULT = replace(LADDER, paths=HERE, corpus=FEW)",
        "PRESETS = (DEFAULT, replace(DEFAULT, name='mine'), replace(DEFAULT, name='endless', corpus=ENDLESS))",
    )


def said(config: Path, *flags: object) -> list[str]:
    """The lines that a preparation printed."""
    done = run_script("prepare_data.py", "--config", config, *flags)
    assert done.returncode == 0 and done.stderr == "", done
    return done.stdout.splitlines()


def prepared(config: Path, *flags: object) -> list[str]:
    """Those about token files."""
    return [line for line in said(config, *flags) if ".bin: " in line]


def test_the_samples_make_six_token_files_and_a_line_for_each(tmp_path: Path, config: Path) -> None:
    lines = prepared(config, "--sample")
    data = tmp_path / "data"
    assert names(data) == {*(f"{name}{kind}" for name in SIX for kind in ("", ".json", ".stories")), ".prepare.lock"}
    for name, line in zip(SIX, lines, strict=True):
        file = open_token_file(data / name, tokenizer=gpt2_tokenizer().fingerprint, vocab_size=50257)
        sidecar = file.sidecar
        assert line == (
            f"{data / name}: {sidecar.stories:,} stories, {sidecar.text_bytes / 1e6:,.1f} MB of text, "
            f"{sidecar.tokens:,} tokens"
        )
        assert sidecar.stories == (300 if name.startswith("train") else 20)
        assert sidecar.sources == ["bundled sample stories"]
    assert stories_in(data / "val_ch.bin") == list(sample_stories("children", 20, seed=1))
    before = bytes_of(data)
    again = said(config, "--sample")
    assert [line for line in again if ".bin: " in line] == lines and bytes_of(data) == before, "twice the same bytes"
    counts = [
        f"{name}: 300 stories for training, 20 for validation; no story repeats another"
        for name in ("tiny", "children", "simple")
    ]
    assert [line for line in again if line not in lines] == counts, "nothing else is said"


def test_one_stage_and_another_preset_write_where_they_belong(tmp_path: Path, config: Path) -> None:
    lines = prepared(config, "--sample", "--stage", "children", "--preset", "mine", "--limit-mb", "0.02")
    assert [line.split(":")[0] for line in lines] == [
        str(tmp_path / "data" / "mine" / name) for name in ("train_ch.bin", "val_ch.bin")
    ]
    sidecar = json.loads((tmp_path / "data" / "mine" / "train_ch.bin.json").read_text(encoding="utf-8"))
    assert 20_000 <= sidecar["text_bytes"] < 24_000
    assert not list((tmp_path / "data").glob("*.bin"))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder with the three corpora as they are published: .txt, .json and .parquet; many small stories."""
    folder = tmp_path / "texts"
    (folder / "simple").mkdir(parents=True)
    for side, seed in (("train", 0), ("valid", 1)):
        text = "\n<|endoftext|>\n".join(sample_stories("tiny", 40, seed=seed))
        (folder / f"TinyStoriesV2-GPT4-{side}.txt").write_text(text, encoding="utf-8")
    rows = [
        {"prompt": "p", "text": f"{story} Caf\u00e9 {i}."} for i, story in enumerate(sample_stories("children", 400))
    ]
    (folder / "Children-Stories-0-Final.json").write_text(json.dumps(rows), encoding="utf-8")
    for side, seed in (("train", 0), ("test", 1)):
        table = pa.table({"story": list(sample_stories("simple", 40, seed=seed)), "topic": 40 * ["t"]})
        pq.write_table(table, folder / "simple" / f"{side}-00000-of-00001.parquet")
    return folder


def test_a_folder_with_the_three_formats_makes_six_token_files(tmp_path: Path, config: Path, texts: Path) -> None:
    lines = prepared(config, "--from", texts)
    assert len(lines) == 6
    data = tmp_path / "data"
    assert stories_in(data / "train.bin") == list(sample_stories("tiny", 40))
    assert stories_in(data / "val.bin") == list(sample_stories("tiny", 40, seed=1))
    assert len(stories_in(data / "train_ch.bin")) + len(stories_in(data / "val_ch.bin")) == 400
    assert stories_in(data / "train_simp.bin") == list(sample_stories("simple", 40))
    assert stories_in(data / "val_simp.bin") == list(sample_stories("simple", 40, seed=1))


def written(folder: Path, **contents: str) -> Path:
    """The folder, with files in its subfolder `tiny`; `__` in a name is its dot."""
    for name, content in contents.items():
        path = folder / "tiny" / name.replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return folder


TALE = "Tale number {0} begins.\n\nA fox found a key.\n\nThe end of {0}."


def test_what_is_read_and_why_is_said_in_a_line_each(tmp_path: Path, config: Path) -> None:
    folder = written(tmp_path / "in", README__txt="Notes.", map__png="x", a_valid__jsonl='{"text": "Val."}\n' * 2)
    written(folder, a__csv='id,text\n1,"One, two."\n2,Three.\n', b__txt="Four.\n<|endoftext|>\nFive.\n")
    (folder / "tiny" / "gone.txt").symlink_to("/nowhere/gone.txt")
    lines = said(config, "--stage", "tiny", "--from", folder)
    assert lines[:4] == [
        f"tiny reads 3 files of {folder / 'tiny'}: a.csv, a_valid.jsonl, b.txt",
        "tiny skips README.txt (documentation, by name); gone.txt (a broken link to /nowhere/gone.txt)"
        "; map.png (unsupported format)",
        "tiny validates on a_valid.jsonl, by name",
        "tiny: 6 stories from 3 files: in field 'text' (the first found of story, text, content, body and so "
        "on), 2 files; separated by <|endoftext|>, 1 file",
    ]
    assert [line.split(": ")[1].split(",")[0] for line in lines[4:]] == [
        *("4 stories", "2 stories"),
        "4 stories for training",
    ]
    assert lines[-1] == "tiny: 4 stories for training, 2 for validation (1 told before, 1 exactly so; kept)"


def test_a_folder_of_tales_is_a_story_a_file(tmp_path: Path, config: Path) -> None:
    folder = written(tmp_path / "in", **{f"tale_{i:02d}__txt": TALE.format(i) for i in range(40)})
    lines = said(config, "--stage", "tiny", "--from", folder)
    assert lines[2].startswith("tiny: 40 stories from 40 files: one story per file (to change: --story-separator")
    train, val = (stories_in(tmp_path / "data" / name) for name in ("train.bin", "val.bin"))
    assert sorted(train + val) == sorted(TALE.format(i) for i in range(40)) and val
    lines = said(config, "--stage", "tiny", "--from", folder, "--story-separator", "blank-line")
    assert lines[2] == "tiny: 120 stories from 40 files: separated by blank lines (as you asked)"


def test_tales_that_end_in_a_marker_and_few_files_and_large_ones_are_no_story_a_file(tmp_path: Path) -> None:
    def count(**contents: str) -> int:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        files = sorted((written(folder, **contents) / "tiny").iterdir())
        return len(list(text_of_files(files).train()))

    assert count(**{f"t{i}__txt": f"{TALE.format(i)}\n<|endoftext|>\nMore.\n" for i in range(12)}) == 24
    assert count(**{f"t{i}__txt": TALE.format(i) for i in range(9)}) == 27
    assert count(**{f"t{i}__txt": f"{TALE.format(i)}\n\n" * 1500 for i in range(12)}) == 12 * 1500 * 3


def test_a_small_file_of_lines_is_a_story_a_line_for_validation_too(tmp_path: Path, config: Path) -> None:
    lines = [f'Story {i} begins. "Is it yours?" asked a voice.' for i in range(120)]
    folder = written(tmp_path / "in", stories__txt="\n".join(lines), valid__txt="\n".join(lines[:4]))
    assert said(config, "--stage", "tiny", "--from", folder)[2].startswith(
        "tiny: 124 stories from 2 files: one story per line"
    )


@pytest.mark.parametrize("number", [2, 20, 25])
def test_a_small_sound_corpus_has_a_validation_story_and_loses_none(tmp_path: Path, number: int) -> None:
    stories = [f"Small story number {i}." for i in range(number)]
    assert not any(hashes_of(story)[0] < 0.01 * 2**64 for story in stories), "none by chance"
    train, val = build(tmp_path, text_of([*stories, " \n"]))
    assert (train.stories, val.stories) == (number - 1, 1)
    assert sorted(stories_in(tmp_path / "train.bin") + stories_in(tmp_path / "val.bin")) == sorted(stories)
    assert train.cleaning["dropped empty"] == 1, "counted once"


@pytest.mark.slow
def test_one_story_without_separators_is_told_with_the_way_out(tmp_path: Path, config: Path) -> None:
    wrapped = "Once there was a fox who lived\nin the deep dark wood and had\nneither friends nor a\nwarm coat.\n" * 10
    folder = written(tmp_path / "in", book__txt=wrapped)
    done = run_script("prepare_data.py", "--config", config, "--stage", "tiny", "--from", folder)
    assert done.returncode == 2
    assert done.stderr == (
        "error: no stories for val.bin in book.txt; 1 story from 1 file: separated by blank lines (no <|endoftext|> "
        "found; to change: --story-separator line or file). Add more text, or set what separates the stories, for "
        "example --story-separator line\n"
    )
    prepared(config, "--stage", "tiny", "--from", folder, "--story-separator", "line")


def test_the_field_that_was_asked_for_is_read(tmp_path: Path, config: Path) -> None:
    rows = "\n".join(json.dumps({"text": f"a prompt {i}", "blurb": f"Story {i}."}) for i in range(300))
    folder = written(tmp_path / "in", a__jsonl=rows)
    lines = said(config, "--stage", "tiny", "--from", folder, "--story-field", "blurb")
    assert lines[2] == "tiny: 300 stories from 1 file: in field 'blurb' (as you asked)"
    assert stories_in(tmp_path / "data" / "train.bin")[0] == "Story 0."


def test_what_a_folder_without_stories_holds_is_named(tmp_path: Path, config: Path) -> None:
    folder = written(tmp_path / "in", dataset_info__json="{}", tales__docx="x")
    told = refusal("prepare_data.py", "--config", config, "--stage", "tiny", "--from", folder)
    assert "(skipped: dataset_info.json (documentation, by name); tales.docx (unsupported" in told


def test_work_grows_with_the_number_of_files_and_not_with_its_square(tmp_path: Path) -> None:
    folder = (
        written(tmp_path, **{f"{i:05d}{'_val' if i % 5 == 0 else ''}__txt": f"Tale {i}." for i in range(4000)}) / "tiny"
    )
    start = time.process_time()
    found_files = corpus_files(tmp_path, corpus_named("tiny"), alone=True)
    text = text_of_files(found_files.files, None, found_files)
    assert text.val is not None and (len(list(text.train())), len(list(text.val()))) == (3200, 800)
    assert time.process_time() - start < 10, "half a second; in squares it is minutes"
    assert len(text.names) == 101 and text.names[-1] == "3,900 more" and folder.is_dir()


def test_without_a_flag_the_raw_folder_is_read(tmp_path: Path, config: Path, texts: Path) -> None:
    (tmp_path / "data").mkdir()
    texts.rename(tmp_path / "data" / "raw")
    lines = prepared(config, "--stage", "tiny")
    assert [line.split(": ")[1].split(",")[0] for line in lines] == ["40 stories", "40 stories"]


def test_with_nothing_there_the_three_choices_are_named(tmp_path: Path, config: Path) -> None:
    raw = tmp_path / "data" / "raw"
    assert refusal("prepare_data.py", "--config", config) == (
        f"error: no text for corpus tiny in {raw}. Add --sample to use bundled stories (no network),"
        " --download to fetch the real corpora (7.4 GB; less with --limit-mb 100), or --from DIR to read your own "
        f"folder; without a flag, {raw} is read\n"
    )


def test_a_corpus_without_text_is_told_before_any_other_is_prepared(tmp_path: Path, config: Path, texts: Path) -> None:
    (texts / "Children-Stories-0-Final.json").unlink()
    assert refusal("prepare_data.py", "--config", config, "--from", texts) == (
        f"error: no text for corpus children in {texts}; put files into {texts / 'children'} "
        "(.txt .json .jsonl .ndjson .csv .tsv .parquet .arrow .feather .gz .bz2 .xz .zst .zip), "
        "or prepare only another stage with --stage\n"
    )
    assert names(tmp_path / "data") == {".prepare.lock"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--sample", "--download"), "argument --download: not allowed with argument --sample"),
        (("--stage", "tny"), "preset 'default' of {config} has no stage 'tny'; did you mean 'tiny'?"),
        (("--limit-mb", "0"), "argument --limit-mb: is '0'; expected a number above 0"),
        (("--limit-mb", "many"), "argument --limit-mb: is 'many'; expected a number above 0"),
        (
            ("--from", "/nowhere"),
            "folder /nowhere does not exist; pass the folder that holds the stories with --from DIR",
        ),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(config: Path, flags: tuple[str, ...], words: str) -> None:
    assert refusal("prepare_data.py", "--config", config, *flags).startswith(f"error: {words.format(config=config)}")


@pytest.mark.slow
def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path: Path, config: Path) -> None:
    prepared(config, "--sample", "--stage", "tiny", "--limit-mb", "0.01")
    data = tmp_path / "data"
    before = bytes_of(data, "*")
    done = subprocess.run(
        command("prepare_data.py", "--config", config, "--sample"),
        env=ENVIRONMENT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        f"error: File too large while writing {data / 'train.bin'}; nothing was replaced. "
        "Free some space (or prepare less with --limit-mb N) and run the same command again\n"
    )
    after = bytes_of(data, "*")
    assert {**after, ".prepare.lock": b""} == {**before, ".prepare.lock": b""}


@contextmanager
def started(*flags: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A running preparation, which does not outlive the test."""
    with subprocess.Popen(
        command("prepare_data.py", *flags),
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def with_fables(tmp_path: Path) -> Path:
    """config.py with a fourth stage, whose corpus is the user's own, and a fifth that learns from it once more."""
    return edited_config(
        tmp_path,
        "FABLES = replace(SIMPLE, name='fables', corpus='fables', script='train_fables.py', result_file='fables.pt')",
        "MORE = replace(FABLES, name='more', script='train_more.py', result_file='more.pt', init_from='fables')",
        f"HERE = replace(LADDER, paths=Paths(root={str(tmp_path)!r}), corpus=CorpusConfig(sample_stories=100))",
        "FIVE = replace(HERE, stages=(TINY, CHILDREN, SIMPLE, FABLES, MORE))",
        "PRESETS = (FIVE, replace(HERE, name='alone', stages=(replace(FABLES, init_from=None, replay=None),)))",
    )


def test_a_corpus_of_ones_own_is_read_from_data_raw_beside_samples(tmp_path: Path, with_fables: Path) -> None:
    raw = tmp_path / "data" / "raw"
    told = refusal("prepare_data.py", "--config", with_fables, "--sample")
    assert told.startswith(
        f"error: no text for corpus fables in {raw} (only tiny, children, simple can be downloaded or "
        f"sampled); put files into {raw / 'fables'} (.txt .json"
    )
    assert names(tmp_path / "data") == {".prepare.lock"}, "told before any other is prepared"
    fables = [f"Fable {i}. The fox ran." for i in range(30)]
    (raw / "fables").mkdir(parents=True)
    (raw / "fables" / "a.txt").write_text("\n<|endoftext|>\n".join(fables))
    lines = prepared(with_fables, "--sample")
    assert [Path(line.split(": ")[0]).name for line in lines] == ["train_fables.bin", "val_fables.bin", *SIX]
    own = stories_in(tmp_path / "data" / "train_fables.bin") + stories_in(tmp_path / "data" / "val_fables.bin")
    assert sorted(own) == sorted(fables)


def test_a_corpus_of_ones_own_is_read_from_a_folder_that_is_given(tmp_path: Path, with_fables: Path) -> None:
    (tmp_path / "in" / "tiny").mkdir(parents=True)
    (tmp_path / "in" / "tiny" / "other.txt").write_text("Not a fable.\n<|endoftext|>\n" * 3)
    flags = ("--config", with_fables, "--from", tmp_path / "in", "--stage", "more")
    assert refusal("prepare_data.py", *flags).startswith(f"error: no text for corpus fables in {tmp_path / 'in'}; put ")
    (tmp_path / "in" / "any.txt").write_text("One.\n<|endoftext|>\nTwo.\n<|endoftext|>\nThree.")
    assert len(prepared(with_fables, *flags[2:])) == 2, "of any name, for one corpus alone"
    lines = prepared(with_fables, "--preset", "alone", "--from", tmp_path / "in")
    assert [line.split(": ")[0] for line in lines] == [
        str(tmp_path / "data" / "alone" / f"{side}_fables.bin") for side in ("train", "val")
    ]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_signal_in_the_middle_leaves_with_its_status_and_without_files(tmp_path: Path, config: Path) -> None:
    partial = tmp_path / "data" / "endless" / "train.bin.partial"
    with started("--config", config, "--preset", "endless", "--sample", "--stage", "tiny") as process:
        until(partial.exists)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (143, "")
    assert err == "\nstopping once everything is saved (press Ctrl-C again to stop immediately)\n"
    assert names(partial.parent) == {".prepare.lock"}


def test_two_preparations_at_once_are_refused_naming_the_first(tmp_path: Path, config: Path) -> None:
    with locked(tmp_path / "data" / ".prepare.lock"):
        told = refusal("prepare_data.py", "--config", config, "--sample")
        assert f"{tmp_path / 'data'} is in use by " in told and f", process {os.getpid()} on " in told
    prepared(config, "--sample", "--stage", "tiny")
