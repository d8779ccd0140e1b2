"""Which stories repeat others: two hashes of 8 bytes per story, kept in NAME.bin.stories next to a token file.

Two stories are *twins* if their letters and digits are equal: after NFKC, without regard to case, accents' encoding,
quotes, dashes, other punctuation and white space. They are *exact* twins if their UTF-8 bytes are equal as well. A
story that stands in a validation file and in a training file is a leak: it makes the validation loss look better than
it is. Knows no readers and no tokenizer; memory is 16 bytes per story, and no story is kept.

With 8 bytes, the chance of one false match among the 5.7 million stories of the three corpora is one in a million.
"""

from __future__ import annotations

import itertools
import struct
import unicodedata
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt

from storyladder.corpus.folders import counted
from storyladder.corpus.token_file import Sidecar, stories_path

HASHES = 2**64
REPEATED, EXACTLY = "repeated", "repeated exactly"  # counts in a sidecar's `cleaning`, absent if zero
LEAKS = {False: "dropped leak", True: "kept leak"}  # by whether leaks are kept
EXACT_LEAKS = "exact leak"
COUNTS = (REPEATED, EXACTLY, *LEAKS.values(), EXACT_LEAKS)

Hashes = npt.NDArray[np.uint64]

_NUMBER = struct.Struct("<Q").unpack
_END_BITS = 20
_END = (1 << _END_BITS) - 1
_ASCII = bytes(range(128))
_LOWER = _ASCII.lower() + bytes(range(128, 256))
_SEPARATORS = bytes(b for b in _ASCII if not chr(b).isalnum())
_SEPARATORS_AND_NOT_ASCII = _SEPARATORS + bytes(range(128, 256))
_PUNCTUATION = frozenset("\u00a0\u00a1\u00ab\u00b4\u00b7\u00bb\u00bf\u2026").union(map(chr, range(0x2010, 0x2020)))


def letters_of(story: str) -> bytes:
    """The letters and digits of a story as UTF-8, after NFKC and case folding; nothing else.

    White space is dropped rather than collapsed, so "some one" equals "someone", and each story takes one pass in C.
    """
    return _letters_of(story, story.encode())


def _letters_of(story: str, raw: bytes) -> bytes:
    if story.isascii():
        return raw.translate(_LOWER, _SEPARATORS)
    if _PUNCTUATION.issuperset(raw.translate(None, _ASCII).decode()):
        return raw.translate(_LOWER, _SEPARATORS_AND_NOT_ASCII)  # ASCII but for quotes and dashes: as most text is
    folded = unicodedata.normalize("NFKC", story).casefold()
    for character in set(folded.encode().translate(None, _ASCII).decode()):
        if not character.isalnum():
            folded = folded.replace(character, "")
    return folded.encode().translate(_LOWER, _SEPARATORS)


def hashes_of(story: str) -> tuple[int, int]:
    """Two hashes below 2**64: the first equal for twins, both equal for exact twins.

    They depend on the story alone. A story without letters and digits has only exact twins.
    """
    raw = story.encode()
    (normal,) = _NUMBER(blake2b(_letters_of(story, raw) or raw, digest_size=8).digest())
    return normal, normal ^ (zlib.crc32(raw) * 0x1_0000_0001)  # twins with the same CRC-32 are exact twins


class StoryHashes:
    """The hashes of some stories, such as those of one token file."""

    def __init__(self) -> None:
        self._normal, self._exact = array("Q"), array("Q")
        self._add_normal, self._add_exact = self._normal.append, self._exact.append

    def add(self, normal: int, exact: int) -> None:
        """Add a story."""
        self._add_normal(normal)
        self._add_exact(exact)

    def ordered(self) -> tuple[Hashes, Hashes]:
        """The first hashes of all stories, sorted, and the second, sorted; both (n,). No story may be added later."""
        both = np.frombuffer(self._normal, dtype=np.uint64), np.frombuffer(self._exact, dtype=np.uint64)
        for hashes in both:
            hashes.sort()
        return both

    def repeats(self) -> dict[str, int]:
        """How many stories repeat an earlier one, and how many of them exactly, as counts of a sidecar."""
        counts = (int(np.count_nonzero(hashes[1:] == hashes[:-1])) for hashes in self.ordered())
        return {name: count for name, count in zip((REPEATED, EXACTLY), counts, strict=True) if count}


class HeldBack:
    """The validation stories that must not be trained on."""

    def __init__(self, parts: Iterable[tuple[Hashes, Hashes]]) -> None:
        columns = [*zip(*parts, strict=True)] or [(), ()]
        self._normal, self._exact = (
            array("Q", np.unique(np.concatenate([np.empty(0, np.uint64), *column])).tobytes()) for column in columns
        )
        self._ends = bytearray(1 << _END_BITS)  # 1 at the last bits of every first hash: a quick no for most stories
        np.frombuffer(self._ends, np.uint8)[np.frombuffer(self._normal, np.uint64) & np.uint64(_END)] = 1

    def holds(self, normal: int) -> bool:
        """Whether a story with this first hash is a twin of a validation story."""
        return self._ends[normal & _END] == 1 and _holds(self._normal, normal)

    def holds_exactly(self, exact: int) -> bool:
        """Whether a story with this second hash is an exact twin of a validation story."""
        return _holds(self._exact, exact)


def _holds(ordered: array[int], value: int) -> bool:
    place = bisect_left(ordered, value)
    return place < len(ordered) and ordered[place] == value


def stored_hashes(path: Path, sidecar: Sidecar | None) -> tuple[Hashes, Hashes] | None:
    """Both hashes of a token file's stories, sorted, mapped into memory; None if none are stored for this content."""
    if sidecar is None:
        return None
    try:
        stored = np.memmap(stories_path(path), dtype="<u8", mode="r")
    except (OSError, ValueError):  # missing, empty, or not of whole numbers
        return None
    if stored[:4].tobytes().hex() != sidecar.sha256 or len(stored) != 4 + 2 * sidecar.stories:
        return None
    return stored[4 : 4 + sidecar.stories], stored[4 + sidecar.stories :]


def in_both(these: Hashes, those: Hashes) -> int:
    """How many of these hashes are among those; both sorted. Takes a few MB for any number of them."""
    count, step = 0, 1 << 18
    for start in range(0, len(these) if len(those) else 0, step):
        part = these[start : start + step]
        places = np.minimum(np.searchsorted(those, part), len(those) - 1)
        count += int(np.count_nonzero(those[places] == part))
    return count


def told(name: str, train: Sidecar, val: Sidecar) -> str:
    """One line: how many stories a corpus has on each side, repeats, and leaks."""
    sides = [f"{counted(train.stories, 'story')} for training", f"{val.stories:,} for validation"]
    for i, sidecar in enumerate((train, val)):
        if repeated := sidecar.cleaning.get(REPEATED, 0):
            exactly = sidecar.cleaning.get(EXACTLY, 0)
            sides[i] += f" ({repeated:,} told before, {exactly:,} exactly so; kept)"
    line = f"{name}: {', '.join(sides)}"
    if not any(sidecar.cleaning.get(count) for sidecar in (train, val) for count in COUNTS):
        line += "; no story repeats another"
    exactly = train.cleaning.get(EXACT_LEAKS, 0)
    if dropped := train.cleaning.get(LEAKS[False], 0):
        line += (
            f"; left out of training: {dropped:,} in a validation text ({exactly:,} exactly; --keep-leaks keeps them)"
        )
    if kept := train.cleaning.get(LEAKS[True], 0):
        line += f"; kept in training: {kept:,} in a validation text ({exactly:,} exactly)"
    return line


def told_across(files: Mapping[str, Sequence[tuple[Path, Sidecar | None]]]) -> tuple[list[str], list[str]]:
    """Lines about stories that several corpora have, and the names of corpora that train on another's validation text.

    Args:
        files: Of each corpus, the training file and the validation file with their sidecars, None if there is no file.
    """
    stored = {name: [stored_hashes(*file) for file in pair] for name, pair in files.items()}
    lines = [
        f"{path} was made without hashes of its stories; prepare {name} again to compare them with other stories"
        for name, pair in files.items()
        for (path, sidecar), hashes in zip(pair, stored[name], strict=True)
        if sidecar and not hashes
    ]
    leaking = []
    for one, two in itertools.permutations(stored, 2):
        (train, sidecar), train_hashes, val_hashes = files[one][0], stored[one][0], stored[two][1]
        if not (sidecar and train_hashes and val_hashes) or LEAKS[True] in sidecar.cleaning:
            continue
        if leaks := in_both(train_hashes[0], val_hashes[0]):
            lines.append(f"{one}: {counted(leaks, 'story')} of {train} also in the validation text of {two}")
            leaking.append(one)
    for one, two in itertools.combinations(stored, 2):
        first, second = stored[one][0], stored[two][0]
        if first and second and (shared := in_both(first[0], second[0])):
            exactly = in_both(first[1], second[1])
            lines.append(
                f"{one}: {counted(shared, 'story')} also in training text of {two} ({exactly:,} exactly; kept)"
            )
    return lines, [*dict.fromkeys(leaking)]
