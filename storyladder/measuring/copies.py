"""The longest passage of each text that a token file contains, word for word: one pass, memory that depends on the
texts and not on the file.

The texts are indexed, by a 64-bit hash of every run of SEED tokens, and the file streams past. Every hit is verified
token by token and extended as far as it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from storyladder.corpus.token_file import Ids

SEED = 8  # tokens; shorter copies are not looked for: every text shares them
_BLOCK = 1 << 20  # tokens of the file at a time
_TABLE_BITS = 22  # of the first, coarse test: is there any run with a hash like this?
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that no token is lost modulo 2**64
_CANDIDATES = 1 << 22  # compared at a time, some 200 MB
_NONE = -1  # no token

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]


def longest_copies(
    texts: Sequence[Sequence[int]],
    stream: Ids,
    *,
    check_stop: Callable[[], None] = lambda: None,
    block: int = _BLOCK,
) -> list[tuple[int, int]]:
    """Start and length, in tokens, of the longest run of each text that the stream contains; (0, 0) below 8 tokens."""
    index = _Index(texts)
    for start in range(0, len(stream), block):
        index.match(np.asarray(stream[start : start + block + SEED - 1]), stream, start)
        check_stop()
    return [(int(start), int(length)) for start, length in zip(index.start_S, index.length_S, strict=True)]


def run_hashes(ids: npt.NDArray[Any]) -> Hashes:
    """A hash of the SEED tokens from each place on, (len(ids) - SEED + 1,); equal runs have equal hashes."""
    hashes, width, factor = ids.astype(np.uint64) + np.uint64(1), 1, _FACTOR
    while width < SEED:  # a run of 2w tokens from two runs of w
        hashes = hashes[:-width] * np.uint64(factor) + hashes[width:]
        width, factor = 2 * width, factor * factor % 2**64
    result: Hashes = hashes * np.uint64(_FACTOR)  # the last token reaches the high bits too
    return result


class _Index:
    """The runs of all texts, sorted by hash, and the longest match of each text so far."""

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self.start_S = np.zeros(len(texts), dtype=np.int64)
        self.length_S = np.zeros(len(texts), dtype=np.int64)
        # One array with an impossible token before each text and after the last, which ends every match.
        self._joined = np.concatenate([np.array([_NONE, *text], dtype=np.int32) for text in [*texts, []]])
        self._end_S = np.cumsum([len(text) + 1 for text in texts], dtype=np.int64)
        self._first_S = self._end_S - [len(text) for text in texts]
        lengths = [max(0, len(text) - SEED + 1) for text in texts]
        text_of_run = np.repeat(np.arange(len(texts)), lengths)
        places = [first + np.arange(length) for first, length in zip(self._first_S, lengths, strict=True)]
        place_of_run = np.concatenate([*places, np.zeros(0, dtype=np.int64)]).astype(np.int64)
        hashes = _gathered_hashes(self._joined, place_of_run)
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._text, self._place = hashes[order], text_of_run[order], place_of_run[order]
        self._coarse = np.zeros(1 << _TABLE_BITS, dtype=bool)
        self._coarse[_slots(self._hashes)] = True

    def match(self, ids: Ids, stream: Ids, offset: int) -> None:
        """Compare a block of the stream, which starts at `offset`, with all runs."""
        if len(ids) < SEED or not len(self._hashes):
            return
        hashes = run_hashes(ids)
        likely = np.flatnonzero(self._coarse[_slots(hashes)])
        first = np.searchsorted(self._hashes, hashes[likely], side="left")
        count = np.searchsorted(self._hashes, hashes[likely], side="right") - first
        # A loop in a text and one in the stream have very many candidates in common: some at a time.
        cuts = np.searchsorted(np.cumsum(count), np.arange(_CANDIDATES, count.sum(), _CANDIDATES))
        for part in np.split(np.arange(len(likely)), cuts):
            where = np.repeat(likely[part], count[part]) + offset
            within = np.arange(len(where)) - np.repeat(np.cumsum(count[part]) - count[part], count[part])
            self._extend(where, np.repeat(first[part], count[part]) + within, stream)

    def _extend(self, where_M: Places, runs_M: Places, stream: Ids) -> None:
        """Verify and extend M candidates: places in the stream, and the runs with the same hash."""
        text_M, place_M = self._text[runs_M], self._place[runs_M]
        # Most cannot win: the same match began a token earlier, or it breaks off before it beats the best so far.
        earlier = (where_M > 0) & (self._joined[place_M - 1] == stream[np.maximum(where_M - 1, 0)])
        hope = self._reaches(where_M, text_M, place_M, stream) & ~earlier
        for where, text, place in zip(where_M[hope], text_M[hope], place_M[hope], strict=True):
            own = self._joined[place : self._end_S[text]]
            length = _common_prefix(own, stream[where : where + len(own)])
            if length >= SEED and length > self.length_S[text]:
                self.start_S[text], self.length_S[text] = place - self._first_S[text], length

    def _reaches(self, where_M: Places, text_M: Places, place_M: Places, stream: Ids) -> npt.NDArray[np.bool_]:
        """Whether the token that would make a candidate longer than its text's best match is the stream's."""
        best_M = self.length_S[text_M]
        inside = (where_M + best_M < len(stream)) & (place_M + best_M < self._end_S[text_M])
        own = self._joined[np.where(inside, place_M + best_M, 0)]
        result: npt.NDArray[np.bool_] = inside & (own == stream[np.where(inside, where_M + best_M, 0)])
        return result


def _gathered_hashes(joined: npt.NDArray[np.int32], place_of_run: Places) -> Hashes:
    """The hashes of the runs that start at these places."""
    if not len(place_of_run):
        return np.zeros(0, dtype=np.uint64)
    return run_hashes(joined)[place_of_run]


def _slots(hashes: Hashes) -> Places:
    """The highest bits, which depend on all tokens."""
    slots: Places = (hashes >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)
    return slots


def _common_prefix(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> int:
    """How many tokens two runs share from their start."""
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if len(different) else size
