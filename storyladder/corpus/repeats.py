"""Which stories repeat others: two hashes of 8 bytes per story, kept in NAME.bin.stories next to a token file.

Two stories are *twins* if their letters and digits are equal: after NFKC, without regard to case, accents' encoding,
quotes, dashes, other punctuation and white space. They are *exact* twins if their UTF-8 bytes are equal as well. A
story that stands in a validation file and in a training file is a leak: it makes the validation loss look better than
it is. Knows no readers; memory is 16 bytes per story, and no story is kept.

With 8 bytes, the chance of one false match among the 5.7 million stories of the three corpora is one in a million.
"""

from __future__ import annotations

import itertools
import struct
import unicodedata
import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from hashlib import shake_128
from pathlib import Path

import numpy as np
import numpy.typing as npt

from storyladder.corpus.folders import counted
from storyladder.corpus.token_file import Ids, Sidecar, stories_path
from storyladder.corpus.tokenizer import Tokenizer

HASHES = 2**64
REPEATED, EXACTLY = "repeated", "repeated exactly"  # counts in a sidecar's `cleaning`, absent if zero
LEAKS = {False: "dropped leak", True: "kept leak"}  # by whether leaks are kept
EXACT_LEAKS = "exact leak"
COUNTS = (REPEATED, EXACTLY, *LEAKS.values(), EXACT_LEAKS)

Hashes = npt.NDArray[np.uint64]

_ASCII = bytes(range(128))
_LOWER = _ASCII.lower() + bytes(range(128, 256))
_SEPARATORS = bytes(b for b in _ASCII if not chr(b).isalnum())
_SEPARATORS_AND_NOT_ASCII = _SEPARATORS + bytes(range(128, 256))
_PUNCTUATION = frozenset("\u00a0\u00a1\u00ab\u00b4\u00b7\u00bb\u00bf\u2026").union(map(chr, range(0x2010, 0x2020)))


def letters_of(story: str) -> bytes:
    """The letters and digits of a story as UTF-8, after NFKC and case folding; nothing else.

    White space is dropped rather than collapsed, so "some one" equals "someone".
    """
    if story.isascii() or _has_foreign_punctuation_only(story):  # as most text is
        return story.encode().translate(_LOWER, _SEPARATORS_AND_NOT_ASCII)
    folded = unicodedata.normalize("NFKC", story).casefold()
    for character in set(folded.encode().translate(None, _ASCII).decode()):
        if not character.isalnum():
            folded = folded.replace(character, "")
    return folded.encode().translate(_LOWER, _SEPARATORS)


class StoryHasher:
    """Hashes stories by their tokens; the hash of the letters does not depend on how they are cut into tokens.

    It is a polynomial in the letters, modulo 2**64 and mixed: each token has its share, whatever stands before it. This
    takes less time than hashing the text story by story, and much of it passes without the GIL.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._eot = tokenizer.eot
        tokens = [
            tokenizer.decode_bytes(token).translate(_LOWER, _SEPARATORS_AND_NOT_ASCII)
            for token in range(tokenizer.vocab_size)
        ]
        self._letters_V = np.array([len(letters) for letters in tokens])
        letters, begins = np.frombuffer(b"".join(tokens), np.uint8), np.cumsum(self._letters_V) - self._letters_V
        places = np.arange(len(letters)) - np.repeat(begins, self._letters_V)
        sums = np.concatenate([[np.uint64(0)], np.cumsum(_VALUES.take(letters) * _POWERS[0].take(places))])
        self._values_V = sums[begins + self._letters_V] - sums[begins]

    def of_stories(self, stories: Sequence[str], ids: Ids) -> tuple[Hashes, Hashes]:
        """Two hashes of each story, both (n,): the first equal for twins, both equal for exact twins.

        They depend on the story alone. A story without letters and digits has only exact twins.

        Args:
            ids: Those of the stories, each followed by the end token.
        """
        ends = np.flatnonzero(ids == self._eot) + 1
        assert len(ends) == len(stories)
        sums, first = np.empty(len(stories), np.uint64), 0
        while first < len(stories):
            start = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, start + _TOKENS_AT_ONCE, side="right")))
            begins = np.concatenate([[0], ends[first : last - 1] - start])
            sums[first:last] = self._sums(ids[start : ends[last - 1]], begins)
            first = last
        texts = np.array([zlib.crc32(story.encode()) for story in stories], np.uint64)
        for i, story in enumerate(stories):
            if not story.isascii() and not _has_foreign_punctuation_only(story):
                letters = np.frombuffer(letters_of(story), np.uint8)
                sums[i] = (_VALUES.take(letters) * _power(np.arange(len(letters)), _POWERS)).sum(dtype=np.uint64)
        normal = _mixed(np.where(sums == 0, texts, sums))
        return normal, normal ^ (texts * np.uint64(0x1_0000_0001))  # twins of equal CRC-32 are exact twins

    def _sums(self, ids: Ids, begins: npt.NDArray[np.int64]) -> Hashes:
        """The polynomial of each story that begins at one of these places."""
        places = ids.astype(np.intp)
        counts = self._letters_V.take(places, mode="clip")
        before = np.cumsum(counts) - counts
        terms = _power(before, _POWERS)
        terms *= self._values_V.take(places, mode="clip")
        sums: Hashes = np.add.reduceat(terms, begins)
        return sums * _power(before.take(begins), _INVERSES)


def _has_foreign_punctuation_only(story: str) -> bool:
    return _PUNCTUATION.issuperset(story.encode().translate(None, _ASCII).decode())


def _powers(base: int) -> tuple[Hashes, Hashes]:
    """base**i for i below 2**16, and base**(i * 2**16)."""
    step = pow(base, 1 << _LOW_BITS, HASHES)
    return tuple(  # type: ignore[return-value]
        np.cumprod(np.array([1] + [factor] * ((1 << _LOW_BITS) - 1), np.uint64), dtype=np.uint64)
        for factor in (base, step)
    )


def _power(exponents: npt.NDArray[np.int64], powers: tuple[Hashes, Hashes]) -> Hashes:
    """Powers for exponents that do not fall. "clip" spares take() a check of its own: no exponent is too large."""
    low, high = powers
    if not len(exponents) or exponents[-1] < len(low):
        return low.take(exponents, mode="clip")
    product: Hashes = low.take(exponents & (len(low) - 1), mode="clip") * high.take(exponents >> _LOW_BITS, mode="clip")
    return product


def _mixed(sums: Hashes) -> Hashes:
    """The sums with all bits mixed (splitmix64's finalizer): those of short stories are small."""
    sums = (sums ^ (sums >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    sums = (sums ^ (sums >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = sums ^ (sums >> np.uint64(31))
    return mixed


_LOW_BITS = 16  # two tables of 512 KB, together for 2**32 letters
_TOKENS_AT_ONCE = 1 << 14  # arrays of 128 KB
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse
_POWERS, _INVERSES = _powers(_BASE), _powers(pow(_BASE, -1, HASHES))
_VALUES = np.array([*struct.unpack("<256Q", shake_128(b"Storyladder").digest(2048))], np.uint64)  # of each byte


class StoryHashes:
    """The hashes of some stories, such as those of one token file."""

    def __init__(self) -> None:
        self._normal, self._exact = array("Q"), array("Q")

    def add(self, normal: Hashes, exact: Hashes) -> None:
        """Add stories, (n,) and (n,)."""
        self._normal.frombytes(normal.tobytes())
        self._exact.frombytes(exact.tobytes())

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


def are_in(these: Hashes, those: Hashes) -> npt.NDArray[np.bool_]:
    """Which of these hashes are among those, which are sorted."""
    if not len(those):
        return np.zeros(len(these), dtype=bool)
    found: npt.NDArray[np.bool_] = those[np.minimum(np.searchsorted(those, these), len(those) - 1)] == these
    return found


def all_sorted(parts: Iterable[Hashes]) -> Hashes:
    """All the hashes, sorted, each once."""
    return np.unique(np.concatenate([np.empty(0, np.uint64), *parts]))


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
    step = 1 << 18
    return sum(int(are_in(these[i : i + step], those).sum()) for i in range(0, len(these), step))


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
