"""BLEU, self-BLEU and distinct-n: by hand, and equal to sacrebleu called directly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU

from storyladder.measuring.continuation_bleu import bleu, bleu_signature
from storyladder.measuring.diversity import distinct, self_bleu

TOLD = ["The cat sat on the mat.", "A dog ran home, and it slept well.", "Yes.", ""]
REAL = ["The cat sat on a mat.", "A dog ran far away and slept well there.", "No, not yet.", "All is well."]


def test_bleu_by_hand() -> None:
    """The cat sat on a mat, 6 words: matches 5, 3, 2, 1 of 6, 5, 4, 3, and no brevity penalty."""
    expected = 100 * math.exp(sum(math.log(share) for share in (5 / 6, 3 / 5, 2 / 4, 1 / 3)) / 4)
    score = bleu(["the cat sat on the mat"], ["the cat sat on a mat"])
    assert score([0]) == pytest.approx(expected)
    assert expected == pytest.approx(53.7285, abs=1e-4)
    short = bleu(["the cat sat on"], ["the cat sat on a mat"])
    assert short([0]) == pytest.approx(100 * math.exp(1 - 6 / 4))


@pytest.mark.parametrize("order", [2, 4])
def test_bleu_is_what_sacrebleu_gives(order: int) -> None:
    score = bleu(TOLD, REAL, order=order)
    for places in ([0, 1, 2, 3], [1, 3], [3]):
        metric = BLEU(max_ngram_order=order, force=True)
        direct = metric.corpus_score([TOLD[i] for i in places], [[REAL[i] for i in places]])
        assert score(places) == pytest.approx(direct.score)
        assert bleu_signature(order) == f"{metric.get_signature()}|order:{order}"
    assert bleu_signature().startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")


def test_self_bleu_is_sacrebleu_with_all_others_as_references() -> None:
    generator = np.random.default_rng(0)
    stories = [[f"w{i}" for i in generator.integers(0, 12, 15)] for _ in range(7)]
    texts = [" ".join(story) for story in stories]
    score = self_bleu(stories)
    for places in (range(7), [0, 2, 5], [3, 6]):
        chosen = [texts[place] for place in places]
        others = [[text for i, text in enumerate(chosen) if i != place] for place in range(len(chosen))]
        direct = BLEU(tokenize="none", force=True).corpus_score(
            chosen, [list(column) for column in zip(*others, strict=True)]
        )
        assert score(places) == pytest.approx(direct.score)


def test_equal_stories_are_all_alike_and_strangers_are_not() -> None:
    story = list("abcdef")
    assert self_bleu([story, story, story])([0, 1, 2]) == pytest.approx(100.0)
    strangers = [[f"{name}{i}" for i in range(30)] for name in "xyz"]
    assert self_bleu(strangers)([0, 1, 2]) < 2.0
    assert self_bleu(strangers)([0]) < 2.0


def test_distinct_runs_by_hand() -> None:
    stories = [list("abab"), list("abcd")]
    assert distinct(stories, 1)([0, 1]) == 4 / 8
    assert distinct(stories, 2)([0, 1]) == 4 / 6  # ab, ba, bc, cd
    assert distinct(stories, 2)([0]) == 2 / 3
