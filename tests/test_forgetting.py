"""What was forgotten, in words and with an interval over stories; a warning only beyond the noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import config
from storyladder.measuring.forgetting import Forgetting, advice, forgetting, paired_interval

STAGES = ("tiny", "children", "simple")


def story_nats(n: int = 400, seed: int = 0) -> np.ndarray:
    """Of stories that differ by far more than stages do."""
    return np.random.default_rng(seed).lognormal(5, 1, n)


def test_a_later_stage_is_compared_with_the_best_one() -> None:
    base = story_nats()
    nats = {("tiny", "a"): base, ("children", "a"): base * 1.5, ("simple", "a"): base * 1.07}
    nats |= {("tiny", "b"): base * 2, ("children", "b"): base, ("simple", "b"): base * 1.02}
    nats |= {("tiny", "c"): base * 2, ("children", "c"): base * 1.5, ("simple", "c"): base}
    found = forgetting(STAGES, ("a", "b", "c", "d"), nats)
    assert [(entry.stage, entry.corpus, entry.best_stage, round(entry.change, 6)) for entry in found] == [
        ("children", "a", "tiny", 0.5),
        ("simple", "a", "tiny", 0.07),
        ("simple", "b", "children", 0.02),
    ], "the top of the ladder is the best on c, and earlier stages cannot have forgotten"
    assert found[1].sentence == ("stage simple is 7.0% worse on a than stage tiny was (95 % interval +7.0% to +7.0%)")
    assert [entry.is_beyond_noise for entry in found] == [True, True, False]
    assert found[0].record().keys() == {"stage", "corpus", "best_stage", "change", "low", "high", "sentence"}


def test_a_stage_without_a_result_is_left_out() -> None:
    base = story_nats()
    (entry,) = forgetting(STAGES, ("a",), {("tiny", "a"): base, ("simple", "a"): base * 1.2})
    assert (entry.stage, entry.best_stage) == ("simple", "tiny")


def test_the_interval_pairs_the_stories() -> None:
    base = story_nats()
    noisy = base * (1.06 + np.random.default_rng(1).normal(0, 0.05, len(base)))
    low, high = paired_interval(noisy, base)
    assert low is not None and high is not None
    assert low < noisy.sum() / base.sum() - 1 < high
    # Unpaired, the spread of the stories' lengths alone would be 2 * 1.96 * sqrt(2) * 1.31 / 20, about 36 %.
    assert 0.005 < high - low < 0.03
    # Against the formula for a ratio: the spread of (mine - ratio * theirs) over the mean of theirs.
    residual = noisy - noisy.sum() / base.sum() * base
    assert high - low == pytest.approx(2 * 1.96 * residual.std() / base.mean() / np.sqrt(len(base)), rel=0.1)
    assert paired_interval(noisy, base) == (low, high), "the same every time"


def test_a_warning_needs_the_whole_interval_beyond_five_percent() -> None:
    def entry(low: float | None) -> Forgetting:
        return Forgetting("simple", "a", "tiny", 0.07, low, 0.09)

    assert entry(0.051).is_beyond_noise
    assert not entry(0.049).is_beyond_noise
    assert not entry(None).is_beyond_noise
    assert entry(None).sentence.endswith("than stage tiny was (no interval: too few stories)")


def test_a_few_stories_have_no_interval() -> None:
    assert paired_interval(np.ones(9), np.ones(9)) == (None, None)
    assert paired_interval(np.ones(10), np.ones(10)) == (0.0, 0.0)


def test_the_advice_is_a_setting_that_config_py_accepts() -> None:
    ladder = config.LADDER
    assert "replay={'tiny': 0.5} for this stage" in advice(ladder, "children", "tiny")
    assert "replay={'tiny': 0.25, 'children': 0.125}" in advice(ladder, "simple", "tiny")
    tiny, children, simple = ladder.stages
    bare = replace(ladder, stages=(tiny, replace(children, replay=None), simple))
    assert "replay={'tiny': 0.1}" in advice(bare, "children", "tiny")
    for stage, corpus in (("tiny", "children"), ("children", "simple"), ("children", "children"), ("tiny", "x.txt")):
        assert advice(ladder, stage, corpus) == "", "the stage has no earlier text of it"
