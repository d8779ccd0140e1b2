"""Intervals: values known by hand, and as many as promised hold the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from storyladder.measuring.intervals import mean_interval, score_interval, share_interval


def test_wilson_as_in_the_literature() -> None:
    """15 of 50 by Wilson's formula, computed by hand: (0.3 + 1.9208/50 ± ...) / (1 + 3.8415/50)."""
    low, high = share_interval(15, 50)
    z2 = 3.841458820694124
    middle = (0.3 + z2 / 100) / (1 + z2 / 50)
    half = math.sqrt(z2) * math.sqrt(0.3 * 0.7 / 50 + z2 / 10_000) / (1 + z2 / 50)
    assert (low, high) == pytest.approx((middle - half, middle + half))
    assert (low, high) == pytest.approx((0.1910, 0.4375), abs=1e-4)


def test_a_share_of_none_or_all_ends_at_its_limit_and_not_in_a_point() -> None:
    assert share_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert share_interval(20, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)
    assert share_interval(0, 3)[0] == 0.0 and share_interval(3, 3)[1] == 1.0


def test_equal_values_have_no_spread_and_a_seed_repeats_the_draws() -> None:
    assert mean_interval([2.5] * 7) == (2.5, 2.5)
    values = np.random.default_rng(0).random(30).tolist()
    assert mean_interval(values, 3) == mean_interval(values, 3) != mean_interval(values, 4)


@pytest.mark.parametrize("n", [15, 60])
def test_nine_in_ten_intervals_hold_the_true_mean(n: int) -> None:
    """Nominally 95 % do; few draws give a little less with the bootstrap, and 60 repetitions are few."""
    generator = np.random.default_rng(0)
    drawn = generator.normal(5.0, 2.0, (60, n))

    def holds(interval: tuple[float, float]) -> bool:
        return interval[0] <= 5.0 <= interval[1]

    bootstrap = sum(holds(mean_interval(row.tolist())) for row in drawn)
    jackknife = sum(holds(score_interval(lambda places, row=row: float(row[list(places)].mean()), n)) for row in drawn)
    assert 51 <= bootstrap <= 60
    assert 53 <= jackknife <= 60


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    values = np.array([11.0, 12.0, 14.0, 17.0, 21.0])  # five groups of one: standard error s / sqrt(n), t of 4 degrees
    half = 2.776 * values.std(ddof=1) / math.sqrt(5)

    def mean(places: Sequence[int]) -> float:
        return float(values[list(places)].mean())

    assert score_interval(mean, 5) == pytest.approx((15.0 - half, 15.0 + half))


def test_a_score_is_asked_for_each_group_once_and_is_never_negative() -> None:
    asked: list[list[int]] = []

    def score(places: Sequence[int]) -> float:
        asked.append(list(places))
        return float(len(asked))

    low, _ = score_interval(score, 41)
    assert len(asked) == 21 and asked[-1] == list(range(41))
    assert asked[0] == [place for place in range(41) if place % 20 != 0]
    assert low == 0.0
