"""How far two ways of computing the same may lie apart, by the precision of their matmuls."""

from __future__ import annotations

import pytest

ROUND_OFF = {"fp32": 2.0**-24, "bf16": 2.0**-8}  # half the distance of neighbouring numbers, as a share of them
_SUMMED = 1e-4  # nats: what sums taken in another order make of fp32's round-off in some steps, measured up to 5e-6


def loss_tolerance(precision: str, learned: float) -> float:
    """Nats per token by which two losses may differ, where training has brought the loss down by `learned`.

    A loss is the logarithm of a sum over the scores minus the target's score, and a score held in bf16 is off by up to
    2^-8 of itself. At the start scores are about 0 and the loss is the logarithm of the vocabulary, however they are
    rounded; what training takes off the loss is what the scores differ by since. So each of the two terms is off by
    2^-8 of that. The same holds for what the updates add to it: gradients are off by 2^-8 of themselves.
    """
    return max(_SUMMED, 2 * ROUND_OFF[precision] * learned)


def norm_tolerance(precision: str) -> float:
    """Share by which two norms of the same gradient may differ.

    Of what is rounded on the way to a gradient, activations and the gradients behind them, two factors meet in each of
    its products: each is off by up to the round-off, and so is what an update made of such gradients before.
    """
    return max(2e-5, 4 * ROUND_OFF[precision])


def assert_same_losses(ours: list[float], theirs: list[float], precision: str) -> None:
    """Two loss curves of a stage that are equal but for rounding."""
    learned = max(theirs) - min(theirs)
    assert ours == pytest.approx(theirs, rel=0, abs=loss_tolerance(precision, learned))


def gradient_tolerance(precision: str, n_layer: int) -> float:
    """Share of its norm by which the gradient of a parameter may miss that of exact arithmetic.

    What reaches the first layer has been rounded ten times in each layer on the way forward (two norms, two matmuls of
    the MLP and GELU, five in attention), as often in backward, and four times at head and embedding. Errors of
    different roundings are independent, so their squares add up. Scores must be about 1: an exponential is off by the
    round-off times the score.
    """
    return float(ROUND_OFF[precision] * (20 * n_layer + 4) ** 0.5)
