"""Copied passages: equal to the slowest way of finding them, wherever the stream is cut into blocks."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from storyladder.measuring import copies
from storyladder.measuring.copies import SEED, longest_copies, run_hashes


def by_brute_force(text: list[int], stream: list[int]) -> int:
    """The oracle: every run of the text against every place of the stream."""
    best = 0
    for start in range(len(text)):
        for place in range(len(stream)):
            length = 0
            while (
                start + length < len(text)
                and place + length < len(stream)
                and text[start + length] == stream[place + length]
            ):
                length += 1
            best = max(best, length)
    return best if best >= SEED else 0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("block", "candidates"), [(3, 1 << 22), (64, 7), (1 << 20, 1 << 22)])
def test_the_longest_run_is_the_one_that_brute_force_finds(
    seed: int, block: int, candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two or three types of tokens, so that long and overlapping matches abound."""
    monkeypatch.setattr(copies, "_CANDIDATES", candidates)
    generator = np.random.default_rng(seed)
    stream = generator.integers(0, 2 + seed % 2, 150).astype(np.uint16)
    texts = [generator.integers(0, 2 + seed % 2, size).tolist() for size in (0, 5, 8, 40, 60)]
    texts += [stream[20:90].tolist(), [1] * 30, stream[-9:].tolist(), stream[:8].tolist()]
    found = longest_copies(texts, stream, block=block)
    assert [length for _, length in found] == [by_brute_force(text, stream.tolist()) for text in texts]
    whole = stream.tolist()
    for text, (start, length) in zip(texts, found, strict=True):
        run = text[start : start + length]
        assert len(run) == length
        assert any(whole[place : place + length] == run for place in range(len(whole)))


def test_a_copy_has_its_place_and_its_length() -> None:
    stream = np.arange(1000, 2000).astype(np.uint16)
    text = [5, 6, *range(1500, 1530), 7]
    assert longest_copies([text, [1, 2, 3]], stream) == [(2, 30), (0, 0)]


def test_seven_tokens_are_no_copy_and_eight_are() -> None:
    stream = np.arange(100, 200).astype(np.uint16)
    assert longest_copies([[1, *range(150, 157)], [1, *range(150, 158)]], stream) == [(0, 0), (1, 8)]


def test_equal_hashes_of_different_runs_are_no_match(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run has the same hash: whatever is found then was verified token by token."""
    monkeypatch.setattr(copies, "run_hashes", lambda ids: np.zeros(max(0, len(ids) - SEED + 1), dtype=np.uint64))
    generator = np.random.default_rng(1)
    stream = generator.integers(0, 3, 120).astype(np.uint16)
    texts = [generator.integers(0, 3, 40).tolist(), stream[30:70].tolist()]
    lengths = [length for _, length in longest_copies(texts, stream)]
    assert lengths == [by_brute_force(text, stream.tolist()) for text in texts]


def test_hashes_depend_on_every_token_of_the_run_in_their_high_bits() -> None:
    ids = np.arange(50, 50 + SEED).astype(np.uint16)
    coarse = {int(run_hashes(ids)[0]) >> 42}
    for place in range(SEED):
        changed = ids.copy()
        changed[place] += 1
        coarse.add(int(run_hashes(changed)[0]) >> 42)
    assert len(coarse) == SEED + 1
    assert len(run_hashes(ids)) == 1


def test_memory_depends_on_the_texts_and_not_on_the_stream() -> None:
    generator = np.random.default_rng(0)
    texts = [generator.integers(0, 50_000, 400).tolist() for _ in range(5)]

    def peak(tokens: int) -> int:
        stream = generator.integers(0, 50_000, tokens).astype(np.uint16)
        tracemalloc.start()
        longest_copies(texts, stream, block=1 << 16)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(2_000_000) < 1.2 * peak(200_000)


def test_a_stop_is_heard_after_each_block() -> None:
    heard = []
    longest_copies([[1] * 9], np.zeros(100, dtype=np.uint16), block=10, check_stop=lambda: heard.append(1))
    assert len(heard) == 10
