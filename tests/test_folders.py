"""Which files of a folder are read, which are not, and that every one of them is named with the reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from storyladder.corpus.corpora import corpus_named
from storyladder.corpus.folders import corpus_files, counted, files_of, listed, split_by_name
from storyladder.runtime.errors import DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x", encoding="utf-8")


def read(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in files_of(folder).files]


def test_everything_that_can_be_read_is_found_sorted_and_whatever_its_packing(tmp_path: Path) -> None:
    names = ["a.JSON", "b.txt", "c.jsonl", "d.parquet", "e.csv", "f.tsv", "g.arrow", "h.ndjson", "i.feather"]
    names += ["j.txt.gz", "k.jsonl.zst", "l.csv.bz2", "m.json.xz", "n.zip"]
    touch(tmp_path, *reversed(names))
    assert read(tmp_path) == names and files_of(tmp_path).left_out == {}


def test_files_in_subfolders_are_found_also_through_links_and_no_folder_within_itself(tmp_path: Path) -> None:
    touch(tmp_path / "in", "vol2/b.txt", "vol1/a.txt", "vol1/deep/er/c.txt", ".cache/d.txt", "z.txt")
    touch(tmp_path / "elsewhere", "e.txt")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "vol1" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "y.txt").symlink_to(tmp_path / "elsewhere" / "e.txt")
    assert read(tmp_path / "in") == [
        *("linked/e.txt", "vol1/a.txt", "vol1/deep/er/c.txt", "vol2/b.txt", "y.txt", "z.txt"),
    ]


def test_what_is_not_read_is_named_with_the_reason(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a.txt",
        "sub/cover.png",
        "tale.pdf",
        "all.tar.gz",
        ".DS_Store",
        "README.txt",
        "LICENSE-CC.txt",
        "Sources.json",
    )
    touch(tmp_path, "dataset_info.json", "state.json", "train.bin", "train.bin.json", "x.txt.part")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "gone.txt").symlink_to("/nowhere/gone.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    found = files_of(tmp_path)
    assert read(tmp_path) == ["a.txt"]
    assert found.left_out == {
        "hidden": [".DS_Store"],
        "documentation, by name": ["LICENSE-CC.txt", "README.txt", "Sources.json", "dataset_info.json", "state.json"],
        "empty": ["empty.txt"],
        "an archive; unpack it there": ["all.tar.gz"],
        "a broken link to /nowhere/gone.txt": ["gone.txt"],
        "a device or pipe": ["pipe.txt"],
        "unsupported format": ["sub/cover.png", "tale.pdf"],
    }
    assert "sub/cover.png, tale.pdf (unsupported format)" in found.skipped()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt")
    (tmp_path / "a.txt").chmod(0)
    assert files_of(tmp_path).left_out == {"no read permission; type chmod u+r": ["a.txt"]}


def test_tales_whose_names_only_begin_like_notes_are_read(tmp_path: Path) -> None:
    names = ["changeling.txt", "noticeboard.txt", "readmeadow.txt", "sourcesea.txt"]
    touch(tmp_path, *names)
    assert read(tmp_path) == names


def test_a_corpus_does_not_read_the_folders_of_the_others(tmp_path: Path) -> None:
    touch(tmp_path, "children/a.txt", "Simple-Stories/b.txt", "tales/c.txt", "d.txt")
    found = corpus_files(tmp_path, corpus_named("tiny"), alone=True)
    assert [path.name for path in found.files] == ["d.txt", "c.txt"]
    found = corpus_files(tmp_path, corpus_named("simple"), alone=False)
    assert [path.name for path in found.files] == ["b.txt"]
    found = corpus_files(tmp_path, corpus_named("tiny"), alone=True, others=[corpus_named("Tales")])
    assert [path.name for path in found.files] == ["d.txt"]
    found = corpus_files(tmp_path, corpus_named("Tales"), alone=False)
    assert [path.name for path in found.files] == ["c.txt"]


def test_a_corpus_whose_folder_has_nothing_to_read_says_what_lies_there(tmp_path: Path) -> None:
    touch(tmp_path, "tiny/stories.docx")
    found = corpus_files(tmp_path, corpus_named("tiny"), alone=True)
    assert found.files == [] and "stories.docx" in found.skipped()


def test_long_lists_are_cut_and_numbers_agree_with_their_nouns() -> None:
    assert listed("abc") == "a, b, c" and listed(map(str, range(1005))) == "0, 1, 2, 3, 4, and 1,000 more"
    assert (counted(1, "story"), counted(2000, "story"), counted(0, "file")) == ("1 story", "2,000 stories", "0 files")


def test_files_for_validation_are_known_by_their_names_and_folders_below_the_one_given(tmp_path: Path) -> None:
    root = tmp_path / "test"  # which says nothing
    names = ["train/a.parquet", "validation/b.parquet", "x/dev/c.txt", "my-valid.txt.gz", "eval.json", "testament.txt"]
    train, val = split_by_name([root / name for name in names], root)
    assert [path.name for path in train] == ["a.parquet", "testament.txt"]
    assert [path.name for path in val] == ["b.parquet", "c.txt", "my-valid.txt.gz", "eval.json"]
    with pytest.raises(DataError, match=r"^b\.txt: only validation files, by their names; add a training file"):
        split_by_name([root / "val" / "b.txt"], root)
