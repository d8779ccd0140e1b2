"""95 % intervals of a mean, a share and a score of a whole set of stories. The story is the unit, never the token.

Percentile bootstrap (Efron 1979) for means, Wilson's interval (1927) for shares. A score across stories, such as
self-BLEU, gets a delete-a-group jackknife: drawing stories twice, as a bootstrap does, would itself be repetition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Interval = tuple[float, float]

_DRAWS = 2_000
_GROUPS = 20
_Z = 1.959963984540054  # of the normal distribution, two-sided 95 %
# Student's t, two-sided 95 %, for 1 to 19 degrees of freedom: the jackknife has one less than it has groups.
_T = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228]
_T += [2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093]


def mean_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean of at least one value, 2,000 draws."""
    values_N = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = [values_N[generator.integers(len(values_N), size=len(values_N))].mean() for _ in range(_DRAWS)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def share_interval(count: int, of: int) -> Interval:
    """Wilson's interval of the share `count / of`; `of` is at least 1."""
    share, z2 = count / of, _Z**2
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = _Z / (1 + z2 / of) * math.sqrt(share * (1 - share) / of + z2 / (4 * of**2))
    return middle - half if count else 0.0, middle + half if count < of else 1.0  # not 1e-17 by rounding


def score_interval(score: Callable[[Sequence[int]], float], n: int) -> Interval:
    """Delete-a-group jackknife of `score(places)`, a number of the stories at these places, over all `n` >= 2 stories.

    Every 20th story makes a group (with fewer than 20 stories, each is one). The score is never negative.
    """
    groups = min(_GROUPS, n)
    scores = np.array([score([place for place in range(n) if place % groups != group]) for group in range(groups)])
    spread = math.sqrt((groups - 1) / groups * float(((scores - scores.mean()) ** 2).sum()))
    whole = score(range(n))
    return max(0.0, whole - _T[groups - 2] * spread), whole + _T[groups - 2] * spread
