"""The corpora: where the text of each comes from and what its files are called, one row per corpus.

A stage of config.py names its corpus. A name without a row here is the user's own corpus: its text is in a folder of
that name, and it has no download and no samples. Knows repositories, pinned revisions, sizes and hashes; neither the
network (download.py) nor how a file is read (readers.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from storyladder.corpus.sample_children import CHILDREN
from storyladder.corpus.sample_simple import SIMPLE
from storyladder.corpus.sample_tiny import TINY
from storyladder.corpus.sample_words import Register
from storyladder.runtime.errors import SettingsError
from storyladder.settings import Ladder, StageConfig


@dataclass(frozen=True)
class RemoteFile:
    """A file of a dataset repository; a size or SHA-256 of None is looked up in the hub's listing of the revision."""

    path: str
    bytes: int | None
    sha256: str | None = None
    also_named: tuple[str, ...] = ()  # other local names that are accepted for it

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


@dataclass(frozen=True, kw_only=True)
class Source:
    """A pinned revision of a dataset on the hub. folders.split_by_name finds validation files by name."""

    repo: str
    revision: str
    files: tuple[RemoteFile, ...]
    val_files: tuple[RemoteFile, ...] = ()  # always downloaded whole, also with --limit-mb


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A body of text and how to find its files."""

    name: str
    suffix: str  # of its token files: train{suffix}.bin, val{suffix}.bin
    folders: tuple[str, ...]  # subfolder names that belong to it; lower case, with _ for -
    files: re.Pattern[str]  # names of its files outside of such a folder
    source: Source | None = None  # None: no download
    register: Register | None = None  # grammar of the bundled sample stories; None: no samples


_SIMPLE_TRAIN_BYTES = (238_015_938, 238_000_197, 237_741_821, 237_658_974, 238_085_905, 237_848_790, 237_678_067)

CORPORA = (
    Corpus(
        name="tiny",
        suffix="",
        folders=("tiny", "tinystories"),
        files=re.compile(r"TinyStories.*", re.IGNORECASE),
        register=TINY,
        source=Source(  # CDLA-Sharing-1.0
            repo="roneneldan/TinyStories",
            revision="f54c09fd23315a6f9c86f9dc80f725de7d8f9c64",
            files=(
                RemoteFile(
                    "TinyStoriesV2-GPT4-train.txt",
                    2_227_753_162,
                    "6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443",
                ),
            ),
            val_files=(
                RemoteFile(
                    "TinyStoriesV2-GPT4-valid.txt",
                    22_502_601,
                    "6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d",
                    also_named=("TinyStoriesV2-GPT4-val.txt",),
                ),
            ),
        ),
    ),
    Corpus(
        name="children",
        suffix="_ch",
        folders=("children", "children_stories"),
        files=re.compile(r"Children-?Stories.*", re.IGNORECASE),
        register=CHILDREN,
        source=Source(  # Apache-2.0; no validation files, so some stories are held back
            repo="ajibawa-2023/Children-Stories-Collection",
            revision="50682ae3fe62733f929fe091691fe639855ffecf",
            files=tuple(RemoteFile(f"Children-Stories-{i}-Final.json", None) for i in range(10)),  # 343 to 346 MB each
        ),
    ),
    Corpus(
        name="simple",
        suffix="_simp",
        folders=("simple", "simple_stories", "simplestories"),
        files=re.compile(r"Simple-?_?Stories.*|(train|test)-\d+-of-\d+\..*", re.IGNORECASE),
        register=SIMPLE,
        source=Source(  # MIT
            repo="SimpleStories/SimpleStories",
            revision="e63b8adc3b1a1bdc7cac5b500d150b71346b0628",
            files=tuple(
                RemoteFile(f"data/train-0000{i}-of-00007.parquet", size) for i, size in enumerate(_SIMPLE_TRAIN_BYTES)
            ),
            val_files=(RemoteFile("data/test-00000-of-00001.parquet", 16_838_557),),
        ),
    ),
)


def corpus_named(name: str) -> Corpus:
    """The corpus of that name: a row of the table, or the user's own.

    SettingsError for a name whose token files would overwrite those of a row.
    """
    own = Corpus(
        name=name,
        suffix=f"_{name}",
        folders=(name.lower(),),
        files=re.compile(rf"{re.escape(name)}([-_.].*)", re.IGNORECASE),
    )
    for corpus in CORPORA:
        if corpus.name == name:
            return corpus
        if corpus.suffix == own.suffix.lower():
            raise SettingsError(
                f"corpus {name!r} would use train{own.suffix}.bin, the token file of corpus {corpus.name!r}; "
                "choose another name in config.py"
            )
    return own


def token_files(ladder: Ladder, stage: StageConfig) -> tuple[Path, Path]:
    """The token files of a stage, for training and for validation."""
    return corpus_files(ladder, stage.corpus)


def corpus_files(ladder: Ladder, name: str) -> tuple[Path, Path]:
    """The token files of a corpus, for training and for validation."""
    folder, suffix = ladder.folder("data"), corpus_named(name).suffix
    return folder / f"train{suffix}.bin", folder / f"val{suffix}.bin"


def training_files(ladder: Ladder, stage: StageConfig) -> list[Path]:
    """The training file of a stage, then those that it replays, in the order of the settings."""
    return [corpus_files(ladder, name)[0] for name in (stage.corpus, *(stage.replay or {}))]
