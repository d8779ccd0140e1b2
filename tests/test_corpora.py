"""The table of corpora: pinned revisions, the promised names of token files, and corpora of the user's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import config
from storyladder.corpus.corpora import CORPORA, Corpus, corpus_named, token_files
from storyladder.corpus.folders import split_by_name
from storyladder.runtime.errors import SettingsError
from storyladder.settings import Ladder


def test_the_table_holds_the_pinned_revisions_and_sizes() -> None:
    tiny, children, simple = (row.source for row in CORPORA)
    assert tiny and children and simple
    assert (tiny.repo, tiny.revision) == ("roneneldan/TinyStories", "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64")
    assert children.repo == "ajibawa-2023/Children-Stories-Collection"
    assert children.revision == "50682ae3fe62733f929fe091691fe639855ffecf"
    assert (simple.repo, simple.revision) == ("SimpleStories/SimpleStories", "e63b8adc3b1a1bdc7cac5b500d150b71346b0628")
    assert [file.bytes for file in tiny.files + tiny.val_files] == [2_227_753_162, 22_502_601]
    assert [file.sha256 for file in tiny.files + tiny.val_files] == [
        "6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443",
        "6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d",
    ]
    assert [file.path for file in children.files] == [f"Children-Stories-{i}-Final.json" for i in range(10)]
    train = [file.bytes for file in simple.files]
    assert sum(n or 0 for n in train) == 1_665_029_692
    assert train[:4] == [238_015_938, 238_000_197, 237_741_821, 237_658_974]
    assert train[4:] == [238_085_905, 237_848_790, 237_678_067]
    assert sum(n or 0 for n in train) + (simple.val_files[0].bytes or 0) == 1_681_868_249
    assert simple.files[6].path == "data/train-00006-of-00007.parquet"


@pytest.mark.parametrize("row", CORPORA, ids=lambda row: row.name)
def test_the_names_of_published_files_tell_which_are_for_validation(row: Corpus) -> None:
    assert row.source is not None
    val = [Path(name) for file in row.source.val_files for name in (file.name, *file.also_named)]
    train = [Path(file.name) for file in row.source.files]
    assert split_by_name([*val, *train], None) == (train, val)
    assert all(row.files.fullmatch(path.name) for path in (*train, *val))


def test_the_token_files_have_the_promised_names(toy_ladder: Ladder) -> None:
    names = [path.name for stage in config.LADDER.stages for path in token_files(toy_ladder, stage)]
    assert names == ["train.bin", "val.bin", "train_ch.bin", "val_ch.bin", "train_simp.bin", "val_simp.bin"]
    fables = replace(toy_ladder.stages[0], corpus="fables")
    folder = toy_ladder.folder("data")
    assert token_files(toy_ladder, fables) == (folder / "train_fables.bin", folder / "val_fables.bin")


def test_a_corpus_without_a_row_is_the_users_own() -> None:
    own = corpus_named("Fables")
    assert (own.source, own.register, own.folders) == (None, None, ("fables",))
    matching = [name for name in ("fables.txt", "Fables-1.json", "fables2.txt", "old.txt") if own.files.fullmatch(name)]
    assert matching == ["fables.txt", "Fables-1.json"]


@pytest.mark.parametrize("name", ["ch", "SIMP"])
def test_a_corpus_of_ones_own_cannot_have_the_token_files_of_another(name: str) -> None:
    with pytest.raises(SettingsError, match=f"^corpus '{name}' would use train_{name}.bin, the token file"):
        corpus_named(name)
