"""From text to token files: cleaning, splitting and encoding.

Uses constant memory and several cores; the result does not depend on their number. Knows no flags and no model.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from storyladder.corpus.cleaning import clean_story
from storyladder.corpus.fields import Reading
from storyladder.corpus.folders import Found, counted, listed, split_by_name, without_repeats
from storyladder.corpus.opening import PACKED, Source, kind_of_file
from storyladder.corpus.readers import read_stories, separator_of
from storyladder.corpus.repeats import EXACT_LEAKS, HASHES, LEAKS, Hashes, StoryHasher, StoryHashes, all_sorted, are_in
from storyladder.corpus.sample_stories import sample_stories
from storyladder.corpus.token_file import Sidecar, TokenWriter
from storyladder.corpus.tokenizer import Tokenizer
from storyladder.runtime.errors import DataError
from storyladder.settings import CorpusConfig

MB = 1_000_000
_BUNDLE_CHARS = 1 << 22  # characters encoded together
_MOST_WORKERS = 4  # more would wait for the single thread that reads and cleans, and each holds a bundle in memory
_VAL_SHARE_OF_LIMIT = 0.1  # --limit-mb N: at most N MB of training text, and a tenth of that for validation
_MOST_SOURCES = 100  # file names in a sidecar
_NOTHING: list[str] = []
_MANY_FILES = 1_000  # from here on, a progress bar counts files too


@dataclasses.dataclass(frozen=True)
class CorpusText:
    """The stories of one corpus. Without validation files, a hash of each story decides where it goes."""

    train: Callable[[], Iterable[str]]
    val: Callable[[], Iterable[str]] | None
    names: list[str]
    bytes: int | None = None  # for the progress bar; None: unknown before reading
    plan: tuple[str, ...] = ()  # lines to print before reading: files read, files skipped, validation
    reading: Reading | None = None  # what reading detected

    def summary(self) -> list[str]:
        """A line with the number of stories and files, and how stories were separated."""
        if self.reading is None or not self.reading.found:
            return []
        known = self.reading.found.most_common()
        how = [f"{how}" + (f", {counted(files, 'file')}" if len(known) > 1 else "") for how, files in known]
        return [
            f"{counted(self.reading.stories, 'story')} from {counted(self.reading.files, 'file')}: {'; '.join(how)}"
        ]


def text_of_files(files: list[Path], corpus: CorpusConfig | None = None, found: Found | None = None) -> CorpusText:
    """The stories of some files; those with val, valid, test, dev or eval in their name are for validation."""
    corpus = corpus or CorpusConfig()
    files = without_repeats(files)
    train, val = split_by_name(files, found.root if found else None)
    sources = [Source(path) for path in files]
    reading = Reading(separator=corpus.story_separator, field=corpus.story_field, unmarked=separator_of(sources))
    known_size = not any(kind_of_file(path.name) in (".parquet", ".arrow") or path.suffix in PACKED for path in files)
    chosen = f"{corpus.val_percent:g}% of the stories, chosen by a hash of their text"
    names = [path.name for path in files]
    for_val = found.names(val) if found else [path.name for path in val]
    return CorpusText(
        train=lambda: _stories_of(train, reading),
        val=(lambda: _stories_of(val, reading)) if val else None,
        names=[*names[:_MOST_SOURCES], *([f"{len(names) - _MOST_SOURCES:,} more"] if names[_MOST_SOURCES:] else [])],
        bytes=sum(path.stat().st_size for path in files) if known_size else None,
        plan=(
            *(found.lines() if found else ()),
            f"validates on {listed(for_val) + ', by name' if val else chosen}",
        ),
        reading=reading,
    )


def _stories_of(files: list[Path], reading: Reading) -> Iterator[str]:
    for path in tqdm(files, unit="file", position=1, leave=False, disable=None if len(files) >= _MANY_FILES else True):
        reading.files += 1
        for story in read_stories(path, reading):
            reading.stories += 1
            yield story


def sample_text(name: str, corpus: CorpusConfig) -> CorpusText:
    """The bundled stories of a corpus; those for validation use another seed."""
    n_val = max(20, round(corpus.sample_stories * corpus.val_percent / 100))
    return CorpusText(
        train=lambda: sample_stories(name, corpus.sample_stories),
        val=lambda: sample_stories(name, n_val, seed=1),
        names=["bundled sample stories"],
    )


def build_token_files(
    text: CorpusText,
    *,
    train_path: Path,
    val_path: Path,
    corpus: CorpusConfig,
    tokenizer: Tokenizer,
    limit_bytes: int | None = None,
    held_back: Sequence[tuple[Hashes, Hashes]] = (),
    keep_leaks: bool = False,
    workers: int | None = None,
    check_stop: Callable[[], None] = lambda: None,
) -> dict[Path, Sidecar]:
    """Write the training and the validation file of one corpus. `check_stop` raises if a signal asked to stop.

    Training stories that stand in the corpus's own validation text or in that of others, of which `held_back` has the
    hashes, are dropped unless `keep_leaks`.
    """
    share = int(corpus.val_percent / 100 * HASHES)
    for _ in range(2):
        job = _Job(text, train_path, val_path, corpus, limit_bytes, share, held_back, keep_leaks)
        with ExitStack() as stack:
            writers = {path: stack.enter_context(TokenWriter(path, tokenizer.fingerprint)) for path in job.limits}
            bar = stack.enter_context(
                tqdm(total=text.bytes, unit="B", unit_scale=True, desc=train_path.name, leave=False, disable=None)
            )
            for main, bundle in _encoded(job.stories(), tokenizer, workers or _cores()):
                for path, kept in job.sides(main, bundle).items():
                    writers[path].add(
                        bundle.ids_of(kept), stories=int(kept.sum()), text_bytes=int(bundle.bytes[kept].sum())
                    )
                bar.update(int(bundle.bytes.sum()))
                check_stop()
            if not text.val and not writers[val_path].stories and writers[train_path].stories > 1:
                share = job.smallest + 1  # few stories, none held back by chance: repeat with one
                continue
            for path, writer in writers.items():
                if not writer.stories:
                    raise DataError(f"no stories for {path.name} in {listed(text.names)}; {_why_none(job, path)}")
            built = {
                path: writer.seal(
                    sources=text.names,
                    cleaning=job.counts[path] + collections.Counter(job.hashes[path].repeats()),
                    hashes=job.hashes[path].ordered(),
                )
                for path, writer in writers.items()
            }
            for writer in writers.values():
                writer.publish()
            return built
    raise AssertionError("a second pass has validation stories")


def _cores() -> int:
    return min(os.cpu_count() or 1, _MOST_WORKERS)


@dataclasses.dataclass
class _Job:
    """One pass over the text of a corpus: which story goes to which file, and counts of what cleaning changed."""

    text: CorpusText
    train_path: Path
    val_path: Path
    corpus: CorpusConfig
    limit_bytes: int | None
    share: int  # without validation files, stories with a hash below this are for validation
    others: Sequence[tuple[Hashes, Hashes]] = ()  # hashes of the validation stories of other corpora
    keep_leaks: bool = False
    smallest: int = HASHES  # hash of a training story

    def __post_init__(self) -> None:
        val_limit = self.limit_bytes and int(self.limit_bytes * _VAL_SHARE_OF_LIMIT)
        self.limits = {self.train_path: self.limit_bytes, self.val_path: val_limit}
        self.counts: dict[Path, collections.Counter[str]] = {path: collections.Counter() for path in self.limits}
        self.hashes = {path: StoryHashes() for path in self.limits}
        self._held_back: list[Hashes] | None = None  # both hashes of stories that must not be trained on

    def stories(self) -> Iterator[Cleaned]:
        """Cleaned stories, until the limits are reached. Validation files come first: none of theirs is trained on."""
        if self.text.reading:
            self.text.reading.restart()
        yield from self.stories_for_validation()
        yield from self._cleaned(self.text.train(), self.train_path)

    def stories_for_validation(self) -> Iterator[Cleaned]:
        """The stories of the validation files, if there are any."""
        if self.text.val:
            yield from self._cleaned(self.text.val(), self.val_path)

    def _cleaned(self, stories: Iterable[str], main: Path) -> Iterator[Cleaned]:
        limit, read = self.limits[main], 0
        if limit is not None and not self.text.val:
            limit += int(limit * self.share / (HASHES - self.share))  # this much more text will be for validation
        done: collections.Counter[str] = collections.Counter()  # to this story
        for story in stories:
            if limit is not None and read >= limit:
                return
            cleaned = clean_story(story, self.corpus.cleaning, done)
            if cleaned is None:
                self.counts[main].update(done)
            else:
                read += 0 if limit is None else _utf8_bytes(cleaned)
                yield main, cleaned, [*done] if done else _NOTHING
            if done:
                done.clear()

    def sides(self, main: Path, bundle: Bundle) -> dict[Path, npt.NDArray[np.bool_]]:
        """Which stories of a bundle go to which token file. Twins are on one side; stories added later move none."""
        normal, exact = bundle.hashes
        sides = {main: np.ones(len(normal), dtype=bool)}
        if main is self.train_path:
            if self._held_back is None:
                own = [self.hashes[self.val_path].ordered()] if self.text.val else []
                self._held_back = [all_sorted(column) for column in zip(*own, *self.others, strict=True)] or [
                    normal[:0],
                    exact[:0],
                ]
            for_val = (normal < self.share) & (not self.text.val)
            leaks = are_in(normal, self._held_back[0]) & ~for_val
            counts = {LEAKS[self.keep_leaks]: leaks, EXACT_LEAKS: leaks & are_in(exact, self._held_back[1])}
            self.counts[main].update({name: int(found.sum()) for name, found in counts.items() if found.any()})
            sides = {main: ~for_val if self.keep_leaks else ~for_val & ~leaks, self.val_path: for_val}
            if sides[main].any():
                self.smallest = min(self.smallest, int(normal[sides[main]].min()))
        for path, kept in sides.items():
            self.hashes[path].add(normal[kept], exact[kept])
        for i, done in bundle.changes:
            self.counts[next((path for path, kept in sides.items() if kept[i]), main)].update(done)
        return sides


def validation_hashes(
    text: CorpusText,
    corpus: CorpusConfig,
    tokenizer: Tokenizer,
    limit_bytes: int | None,
    check_stop: Callable[[], None] = lambda: None,
) -> tuple[Hashes, Hashes]:
    """Hashes of the stories in the validation files of a corpus, as build_token_files would take them."""
    job = _Job(text, Path("train.bin"), Path("val.bin"), corpus, limit_bytes, share=0)
    for main, bundle in _encoded(job.stories_for_validation(), tokenizer, _cores()):
        job.sides(main, bundle)
        check_stop()
    return job.hashes[job.val_path].ordered()


def _why_none(job: _Job, path: Path) -> str:
    counts = job.counts[path]
    if leaks := counts[LEAKS[False]]:
        return f"{leaks:,} stand in validation and were left out; add other stories, or keep them with --keep-leaks"
    if counts:
        return f"cleaning dropped all of them ({dict(counts)}); relax CleaningConfig in config.py"
    if found := job.text.summary():
        return f"{found[0]}. Add more text, or set what separates the stories, for example --story-separator line"
    return "add more text, or raise val_percent in config.py"


Cleaned = tuple[Path, str, list[str]]  # the token file unless repeats decide otherwise, a story, what cleaning changed


@dataclasses.dataclass(frozen=True)
class Bundle:
    """Some stories, encoded and hashed."""

    ids: npt.NDArray[np.uint16]
    tokens: npt.NDArray[np.int64]  # of each story with its end token, (n,)
    bytes: npt.NDArray[np.int64]  # of each story's text, (n,)
    hashes: tuple[Hashes, Hashes]
    changes: list[tuple[int, list[str]]]  # which stories cleaning changed, and how

    def ids_of(self, kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint16]:
        """The ids of some of the stories."""
        return self.ids if kept.all() else self.ids[np.repeat(kept, self.tokens)]


def _encoded(stories: Iterable[Cleaned], tokenizer: Tokenizer, workers: int) -> Iterator[tuple[Path, Bundle]]:
    """Bundles in the order of the stories; encoding releases the GIL, so threads help."""
    hasher = _hasher(tokenizer)
    with ThreadPoolExecutor(max_workers=workers) as pool:
        waiting: collections.deque[tuple[Path, Future[Bundle]]] = collections.deque()
        for path, texts, changes in _bundled(stories):
            waiting.append((path, pool.submit(_encode, tokenizer, hasher, texts, changes)))
            if len(waiting) > workers + 1:
                first_path, future = waiting.popleft()
                yield first_path, future.result()
        for last_path, future in waiting:
            yield last_path, future.result()


_hasher = functools.lru_cache(maxsize=1)(StoryHasher)


def _bundled(stories: Iterable[Cleaned]) -> Iterator[tuple[Path, list[str], list[tuple[int, list[str]]]]]:
    """Stories of one token file grouped, about 4 MB at a time."""
    for path, group in itertools.groupby(stories, key=operator.itemgetter(0)):
        texts: list[str] = []
        changes: list[tuple[int, list[str]]] = []
        size = 0
        for _, story, done in group:
            if done:
                changes.append((len(texts), done))
            texts.append(story)
            size += len(story)
            if size >= _BUNDLE_CHARS:
                yield path, texts, changes
                texts, changes, size = [], [], 0
        if texts:
            yield path, texts, changes


def _encode(
    tokenizer: Tokenizer, hasher: StoryHasher, stories: list[str], changes: list[tuple[int, list[str]]]
) -> Bundle:
    ids = tokenizer.encode_stories(stories)
    ends = np.flatnonzero(ids == tokenizer.eot)
    sizes = np.fromiter(map(_utf8_bytes, stories), np.int64, len(stories))
    return Bundle(ids, np.diff(ends, prepend=-1), sizes, hasher.of_stories(stories, ids), changes)


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8"))
