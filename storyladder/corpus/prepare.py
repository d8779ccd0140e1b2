"""From text to token files: which files belong to a stage, cleaning, splitting and encoding.

Constant memory, several cores, and the result does not depend on how many. This module knows no flags and no model.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from storyladder.corpus.cleaning import clean_story
from storyladder.corpus.readers import read_stories, story_files
from storyladder.corpus.sample_stories import sample_stories
from storyladder.corpus.token_file import Sidecar, TokenWriter
from storyladder.corpus.tokenizer import Tokenizer
from storyladder.runtime.errors import DataError
from storyladder.settings import CorpusConfig

MB = 1_000_000
_BUNDLE_CHARS = 1 << 22  # of stories that are encoded together
_MOST_WORKERS = 4  # more would wait for the one thread that reads and cleans, and hold a bundle each
_VAL_SHARE_OF_LIMIT = 0.1  # --limit-mb N: at most N of text for training and a tenth of it for validation
_PART_NAME = re.compile(r"(.+)\.first-(\d+)-bytes(\.[^.]+)")  # the beginning of a file, as sources.py names it
_VAL_NAME = re.compile(r"(^|[-_.])(val|valid|validation|test|dev)([-_.]|$)", re.IGNORECASE)
_FOLDER_NAMES = {
    "tiny": ("tiny", "tinystories"),
    "children": ("children", "children_stories"),
    "simple": ("simple", "simple_stories", "simplestories"),
}
_FILE_NAMES = {
    "tiny": re.compile(r"TinyStories.*\.(txt|jsonl?|parquet)", re.IGNORECASE),
    "children": re.compile(r"Children-?Stories.*\.(txt|jsonl?|parquet)", re.IGNORECASE),
    "simple": re.compile(r"(Simple-?_?Stories.*|(train|test)-\d+-of-\d+)\.(txt|jsonl?|parquet)", re.IGNORECASE),
}


@dataclasses.dataclass(frozen=True)
class StageText:
    """The stories of one stage. Without validation stories a hash of each text decides where it goes."""

    train: Callable[[], Iterable[str]]
    val: Callable[[], Iterable[str]] | None
    names: list[str]
    bytes: int | None = None  # for the progress bar; None: not known before reading


def text_of_files(files: list[Path]) -> StageText:
    """The stories of some files; names with val, valid, test or dev in them are for validation."""
    files = _without_repeats(files)
    val = [path for path in files if _VAL_NAME.search(path.stem)]
    train = [path for path in files if path not in val]
    if not train:
        raise DataError(f"{', '.join(path.name for path in val)}: only validation text; a training file is missing")
    known_size = all(path.suffix.lower() != ".parquet" for path in files)
    return StageText(
        train=lambda: _stories_of(train),
        val=(lambda: _stories_of(val)) if val else None,
        names=[path.name for path in files],
        bytes=sum(path.stat().st_size for path in files) if known_size else None,
    )


def _without_repeats(files: list[Path]) -> list[Path]:
    """Of a file and beginnings of it only the longest: nothing is read twice."""
    longest: dict[Path, tuple[float, Path]] = {}
    for path in files:
        part = _PART_NAME.fullmatch(path.name)
        whole, length = (path.with_name(part[1] + part[3]), int(part[2])) if part else (path, math.inf)
        longest[whole] = max(longest.get(whole, (0, path)), (length, path))
    return [path for _, path in longest.values()]


def _stories_of(files: list[Path]) -> Iterator[str]:
    for path in files:
        yield from read_stories(path)


def find_stage_files(folder: Path, stage: str, *, only_stage: bool) -> list[Path]:
    """The text files of a stage: those in a subfolder of its name, else by name, else (for one stage alone) all."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; give the folder that holds the stories with --from DIR")
    for name in _FOLDER_NAMES[stage]:
        if (folder / name).is_dir() and (found := story_files(folder / name)):
            return found
    files = story_files(folder)
    named = [path for path in files if _FILE_NAMES[stage].fullmatch(path.name)]
    return named or (files if only_stage else [])


def sample_text(stage: str, corpus: CorpusConfig) -> StageText:
    """The bundled stories of a stage; those for validation come from another seed."""
    n_val = max(20, round(corpus.sample_stories * corpus.val_percent / 100))
    return StageText(
        train=lambda: sample_stories(stage, corpus.sample_stories),
        val=lambda: sample_stories(stage, n_val, seed=1),
        names=["bundled sample stories"],
    )


def build_token_files(
    text: StageText,
    *,
    train_path: Path,
    val_path: Path,
    corpus: CorpusConfig,
    tokenizer: Tokenizer,
    limit_bytes: int | None = None,
    workers: int | None = None,
    check_stop: Callable[[], None] = lambda: None,
) -> dict[Path, Sidecar]:
    """Write the training and the validation file of one stage. `check_stop` raises where a signal asks to leave."""
    limits = {train_path: limit_bytes, val_path: limit_bytes and int(limit_bytes * _VAL_SHARE_OF_LIMIT)}
    counts: dict[Path, collections.Counter[str]] = {path: collections.Counter() for path in limits}
    sides: list[tuple[Callable[[], Iterable[str]], dict[str, Path]]] = [
        (text.train, {"train": train_path} if text.val else {"train": train_path, "val": val_path})
    ]
    if text.val:
        sides.append((text.val, {"val": val_path}))
    with ExitStack() as stack:
        writers = {path: stack.enter_context(TokenWriter(path, tokenizer.fingerprint)) for path in limits}
        bar = stack.enter_context(
            tqdm(total=text.bytes, unit="B", unit_scale=True, desc=train_path.name, leave=False, disable=None)
        )
        for read, targets in sides:
            stories = _routed(read(), targets, corpus, counts, limits)
            for path, (ids, n_stories, n_bytes) in _encoded(stories, tokenizer, workers or _cores()):
                writers[path].add(ids, stories=n_stories, text_bytes=n_bytes)
                bar.update(n_bytes)
                check_stop()
        for path, writer in writers.items():
            if not writer.stories:
                raise DataError(f"no story for {path.name} in {', '.join(text.names)}; {_why_none(counts[path])}")
        built = {path: writer.seal(sources=text.names, cleaning=counts[path]) for path, writer in writers.items()}
        for writer in writers.values():
            writer.publish()
        return built


def _cores() -> int:
    return min(os.cpu_count() or 1, _MOST_WORKERS)


def _why_none(counts: collections.Counter[str]) -> str:
    if counts:
        return f"cleaning took them all ({dict(counts)}); loosen CleaningConfig in config.py"
    return "give more text, or raise val_percent in config.py"


def _routed(
    stories: Iterable[str],
    targets: dict[str, Path],
    corpus: CorpusConfig,
    counts: dict[Path, collections.Counter[str]],
    limits: dict[Path, int | None],
) -> Iterator[tuple[Path, str]]:
    """Cleaned stories, each with the file that it belongs to, until the limit of the first file is reached."""
    main = next(iter(targets.values()))
    limit, read = limits[main], 0
    for story in stories:
        if limit is not None and read >= limit:
            return
        for_val = len(targets) > 1 and _is_for_validation(story, corpus.val_percent)
        path = targets["val"] if for_val else main
        if (cleaned := clean_story(story, corpus.cleaning, counts[path])) is not None:
            read += _utf8_bytes(cleaned) if path == main else 0
            yield path, cleaned


def _is_for_validation(story: str, percent: float) -> bool:
    """By a hash of the text: the choice stays when stories are added, and a story told twice is on one side only."""
    digest = hashlib.sha256(story.strip().encode("utf-8", errors="replace")).digest()
    return int.from_bytes(digest[:8], "big") < percent / 100 * 2**64


Bundle = tuple[npt.NDArray[np.uint16], int, int]  # ids, stories, bytes of text


def _encoded(stories: Iterable[tuple[Path, str]], tokenizer: Tokenizer, workers: int) -> Iterator[tuple[Path, Bundle]]:
    """Bundles of ids in the order of the stories; encoding leaves the interpreter to others, so threads help."""
    with ThreadPoolExecutor(max_workers=workers) as pool:
        waiting: collections.deque[tuple[Path, Future[Bundle]]] = collections.deque()
        for path, bundle in _bundled(stories):
            waiting.append((path, pool.submit(_encode, tokenizer, bundle)))
            if len(waiting) > workers + 1:
                first_path, future = waiting.popleft()
                yield first_path, future.result()
        for last_path, future in waiting:
            yield last_path, future.result()


def _bundled(stories: Iterable[tuple[Path, str]]) -> Iterator[tuple[Path, list[str]]]:
    """Stories of the same file together, about four megabytes at a time."""
    open_bundles: dict[Path, list[str]] = {}
    sizes: collections.Counter[Path] = collections.Counter()
    for path, story in stories:
        open_bundles.setdefault(path, []).append(story)
        sizes[path] += len(story)
        if sizes[path] >= _BUNDLE_CHARS:
            yield path, open_bundles.pop(path)
            sizes[path] = 0
    yield from open_bundles.items()


def _encode(tokenizer: Tokenizer, stories: list[str]) -> Bundle:
    return tokenizer.encode_stories(stories), len(stories), sum(map(_utf8_bytes, stories))


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8"))
