"""Cutting a text into rows: every token once, with the context that the protocol promises."""

from __future__ import annotations

import numpy as np
import pytest

from storyladder.corpus.token_file import ValidationWindows
from storyladder.corpus.tokenizer import EOT
from storyladder.measuring.protocols import Row, batches, count_stories, padded, rows_of, rows_of_stories, story_ends


def story_ids(n_tokens: int = 250, seed: int = 0) -> np.ndarray:
    """Stories of all lengths from 0 to longer than two contexts; the last one lacks its EOT."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, 60, n_tokens).astype(np.uint16)
    ids[[0, 3, 4, 20, 21, 60, 110, 180, 245]] = EOT
    return ids


def rows(protocol: str, ids: np.ndarray, context: int = 16) -> list[Row]:
    return list(rows_of(protocol, ids, story_ends(ids, EOT), context=context, prefix=EOT))


def scored(found: list[Row]) -> list[tuple[int, int]]:
    """(story of the row, target) of every scored target, in order."""
    return [(row.story, int(target)) for row in found for target in row.ids[1:][row.skip :]]


def test_windows_are_those_of_training() -> None:
    ids = story_ids()
    theirs = ValidationWindows(ids, context_length=16, limit=None, token_bytes_V=np.zeros(EOT + 1, dtype=np.int64))
    expected = [row for batch in theirs.batches(4) for row in zip(*batch, strict=True)]
    found = rows("windows", ids)
    assert len(found) == len(expected)
    for row, (inputs, targets) in zip(found, expected, strict=True):
        assert row.skip == 0
        assert row.ids[:-1].tolist() == inputs.tolist() and row.ids[1:].tolist() == targets.tolist()


@pytest.mark.parametrize("n_tokens", [2, 16, 17, 18, 24, 25, 26, 250])
@pytest.mark.parametrize("protocol", ["windows", "sliding"])
def test_every_token_but_the_first_is_scored_once(protocol: str, n_tokens: int) -> None:
    ids = np.arange(n_tokens).astype(np.uint16)
    assert [target for _, target in scored(rows(protocol, ids))] == list(range(1, n_tokens))


def test_a_sliding_row_reaches_back_as_far_as_it_can_and_scores_half_a_context() -> None:
    spans = [(int(row.ids[0]), len(row.ids) - 1, row.skip) for row in rows("sliding", np.arange(42).astype(np.uint16))]
    # first input, inputs, targets that only give context: the last row is short of targets, not of context
    assert spans == [(0, 16, 0), (8, 16, 8), (16, 16, 8), (24, 16, 8), (25, 16, 15)]


def test_each_story_stands_alone_behind_the_prefix_with_its_end() -> None:
    ids = np.array([5, 6, EOT, EOT, 7, EOT, 8, 9], dtype=np.uint16)
    found = rows("stories", ids)
    assert [(row.ids.tolist(), row.skip, row.story) for row in found] == [
        ([EOT, 5, 6, EOT], 0, 0),
        ([EOT, EOT], 0, 1),
        ([EOT, 7, EOT], 0, 2),
        ([EOT, 8, 9], 0, 3),
    ]
    assert count_stories(ids, story_ends(ids, EOT)) == 4
    assert count_stories(ids[:6], story_ends(ids[:6], EOT)) == 3
    assert count_stories(ids[:2], story_ends(ids[:2], EOT)) == 1


def test_a_long_story_slides_and_scores_every_token_once() -> None:
    found = list(rows_of_stories([np.arange(1, 41), np.array([50])], context=16, prefix=0))
    assert scored(found) == [*((0, target) for target in range(1, 41)), (1, 50)]
    assert [(int(row.ids[0]), len(row.ids) - 1, row.skip) for row in found] == [
        *((0, 16, 0), (8, 16, 8), (16, 16, 8), (24, 16, 8)),
        (0, 1, 0),
    ]


@pytest.mark.parametrize("protocol", ["windows", "sliding"])
def test_a_row_knows_the_story_of_its_first_target(protocol: str) -> None:
    ids = story_ids()
    story_of = np.concatenate(([0], np.cumsum(ids == EOT)[:-1]))  # EOT belongs to the story that it ends
    found, position = rows(protocol, ids), 0
    for row in found:
        position += len(row.ids) - 1 - row.skip
        first_target = position - (len(row.ids) - 1) + 1
        assert row.story == story_of[first_target]


def test_batches_hold_similar_rows_and_lose_none() -> None:
    found = list(rows_of_stories([np.arange(1, n) for n in (3, 30, 2, 9, 9, 31, 2)], context=64, prefix=0))
    cut = list(batches(iter(found), 64))
    assert all(batch.idx_BT.size <= 64 for batch in cut)
    assert [batch.idx_BT.shape for batch in cut] == [(2, 30), (5, 8)]
    total = sum(int(batch.scored_BT.sum()) for batch in cut)
    assert total == sum(len(row.ids) - 1 for row in found)
    assert [len(batch.idx_BT) for batch in batches(iter(found), 1)] == [1] * 7, "a long row is a batch of its own"


def test_padding_and_context_are_not_scored() -> None:
    batch = padded([Row(np.array([1, 2, 3, 4]), 1, 0), Row(np.array([5, 6]), 0, 7)])
    assert batch.idx_BT.tolist() == [[1, 2, 3], [5, 6, 0]]
    assert batch.targets_BT.tolist() == [[2, 3, 4], [6, 0, 0]]
    assert batch.scored_BT.tolist() == [[False, True, True], [True, False, False]]
    assert batch.story_B.tolist() == [0, 7]
