"""How a text is cut into rows that a model scores: windows, sliding, stories. Knows tokens only.

windows   disjoint windows of the whole file, as in training's validation: equals the training log
sliding   overlapping windows, half a context apart: every token with at least half a context before it
stories   every story alone behind a prefix token, as a reader meets it; only this protocol compares tokenizers

Each token of a text is scored once; `windows` and `sliding` cannot score the first one, which nothing precedes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

PROTOCOLS = ("windows", "sliding", "stories")
_BLOCK = 1 << 22  # tokens read at a time
_POOL = 64  # batches of rows that are sorted by length together

Ids = npt.NDArray[Any]
Ends = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Row:
    """One sequence: all ids but the last are inputs, all but the first are targets."""

    ids: Ids  # (L + 1,)
    skip: int  # leading targets that only give context
    story: int  # which story the first target belongs to


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows padded to the longest, as arrays (B, T)."""

    idx_BT: npt.NDArray[np.int64]
    targets_BT: npt.NDArray[np.int64]
    scored_BT: npt.NDArray[np.bool_]  # neither context nor padding
    story_B: npt.NDArray[np.int64]


def story_ends(ids: Ids, eot: int) -> Ends:
    """Where the stories of a token file end: the positions of EOT."""
    blocks = [np.flatnonzero(ids[start : start + _BLOCK] == eot) + start for start in range(0, len(ids), _BLOCK)]
    return np.concatenate([*blocks, np.empty(0, dtype=np.int64)])


def count_stories(ids: Ids, ends: Ends) -> int:
    """How many stories there are; the last one may lack its EOT."""
    return len(ends) + bool(len(ids) and (not len(ends) or ends[-1] < len(ids) - 1))


def rows_of(protocol: str, ids: Ids, ends: Ends, *, context: int, prefix: int) -> Iterator[Row]:
    """The rows of a token file in a protocol; `prefix` is the token before every story in `stories`."""
    if protocol == "stories":
        begins = np.concatenate(([0], ends + 1))
        stops = np.concatenate((ends + 1, [len(ids)]))
        stories = ((ids[begin:stop]) for begin, stop in zip(begins, stops, strict=True) if begin < stop)
        yield from rows_of_stories(stories, context=context, prefix=prefix)
        return
    stride = context if protocol == "windows" else stride_of(context)
    for start, stop, skip in _spans(len(ids) - 1, context, stride, full_context=protocol == "sliding"):
        yield Row(ids[start : stop + 1], skip, int(np.searchsorted(ends, start + 1)))


def rows_of_stories(stories: Iterable[Ids], *, context: int, prefix: int) -> Iterator[Row]:
    """Rows of stories that stand alone; one longer than the context slides."""
    for number, story in enumerate(stories):
        ids = np.concatenate(([prefix], story))
        for start, stop, skip in _spans(len(story), context, stride_of(context), full_context=True):
            yield Row(ids[start : stop + 1], skip, number)


def stride_of(context: int) -> int:
    """Tokens from one window to the next where windows overlap."""
    return max(1, context // 2)


def _spans(n_targets: int, context: int, stride: int, *, full_context: bool) -> Iterator[tuple[int, int, int]]:
    """(start, stop, skip) of the rows of n_targets targets: inputs are ids[start:stop], targets one later.

    With `full_context` a row reaches back as far as the context allows; else it starts where the last one stopped.
    """
    done = 0
    while done < n_targets:
        stop = min(n_targets, done + (stride if done else context))
        start = max(0, stop - context) if full_context else done
        yield start, stop, done - start
        done = stop


def batches(rows: Iterable[Row], tokens: int) -> Iterator[Batch]:
    """Rows of similar length together, in batches of at most `tokens` inputs, padding included (or of one row)."""
    pool: list[Row] = []
    size = 0
    for row in rows:
        pool.append(row)
        size += len(row.ids)
        if size >= _POOL * tokens:
            yield from _sorted_batches(pool, tokens)
            pool, size = [], 0
    yield from _sorted_batches(pool, tokens)


def _sorted_batches(pool: list[Row], tokens: int) -> Iterator[Batch]:
    pool.sort(key=lambda row: len(row.ids), reverse=True)  # the longest first: memory runs out at once or never
    start = 0
    while start < len(pool):
        stop = start + max(1, tokens // (len(pool[start].ids) - 1))
        yield padded(pool[start:stop])
        start = stop


def padded(rows: list[Row]) -> Batch:
    """The rows as one batch. Padding stands to the right, where causal attention does not see it."""
    width = max(len(row.ids) for row in rows) - 1
    ids = np.zeros((len(rows), width + 1), dtype=np.int64)
    scored = np.zeros((len(rows), width), dtype=bool)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = row.ids
        scored[number, row.skip : len(row.ids) - 1] = True
    return Batch(ids[:, :-1], ids[:, 1:], scored, np.array([row.story for row in rows]))
